// Tally marks: a count on sheets of five five-bar gates, in a handwriting that belongs to the name.

import { reducedMotion, s } from "../lib/dom.js";

const SHEET = 25; // five gates of five; the hit after a full sheet starts a fresh one
const GATE = 29; // units from one gate to the next, in a 148 x 29 drawing
const DRAW_MS = 220; // one stroke of a quick hand

/** A small seeded generator, so a name is drawn alike on every paint. @param {string} name */
function hand(name) {
  let seed = 2166136261; // FNV-1a for the seed, then a linear congruence
  for (const char of name) seed = Math.imul(seed ^ (char.codePointAt(0) ?? 0), 16777619);
  return (/** @type {number} */ range) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
    return (seed / 2147483648) * range;
  };
}

/** The path of every stroke on a sheet, in drawing order. @param {string} name */
function strokes(name) {
  const wobble = hand(name);
  const lean = wobble(1.3) - 0.4;
  const spread = 5.4 + wobble(0.4);
  return Array.from({ length: SHEET }, (_, i) => {
    const left = 5 + Math.floor(i / 5) * GATE;
    const x = left + (i % 5) * spread;
    const [a, b, c, d] = [0.9, 1.6, 1.2, 1.6].map(wobble);
    const [from, bend, to] = i % 5 < 4
      ? [[x - lean + a, 4 + b], [x + c, 11, x - c, 18], [x + lean + a / 2, 25 + d]]
      : [[left - 4.4 + a, 20 + b], [left + 5, 17 + c, left + 12, 12 - c], [left + 3 * spread + 5 + a, 8.5 + d]];
    return `M${from.map(round)}C${[...bend, ...to].map(round)}`;
  });
}

/** @param {number} n */
const round = (n) => n.toFixed(1);
/** @param {number} count strokes on its last sheet; a full sheet stays until the next hit */
const onSheet = (count) => (count > 0 ? ((count - 1) % SHEET) + 1 : 0);

/** The marks of one event. Nothing is computed before the first `set`. @param {string} name */
export function createMarks(name) {
  const [posts, bars, wet] = ["posts", "bars", "wet"].map((part) => s("path", { class: part, pathLength: 1 }));
  const el = s("svg", { class: "marks", viewBox: "0 0 148 29", "aria-hidden": "true" }, posts, bars, wet);
  /** @type {string[]} */ let all = [];
  let shown = -1;

  function set(/** @type {number} */ count, animate = true) {
    if (count === shown) return;
    if (!all.length) all = strokes(name);
    const upTo = onSheet(count);
    // The newest ink keeps the accent colour until the next hit dries it; a torrent is not drawn stroke by stroke.
    const from = shown < 0 && animate ? 0 : shown;
    const few = from >= 0 && count > from && count - from <= 5;
    const dry = Math.max(0, upTo - (few ? count - from : 1));
    shown = count;
    posts.setAttribute("d", all.slice(0, dry).filter((_, i) => i % 5 < 4).join(""));
    bars.setAttribute("d", all.slice(0, dry).filter((_, i) => i % 5 === 4).join(""));
    wet.setAttribute("d", all.slice(dry, upTo).join(""));
    if (!few || !animate || reducedMotion()) return;
    wet.animate([{ strokeDashoffset: 1 }, { strokeDashoffset: 0 }], { duration: DRAW_MS, easing: "ease-out" });
  }

  return { el, set };
}
