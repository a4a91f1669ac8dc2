// Draws a count as tally marks: five five-bar gates on a sheet, in a handwriting that depends on the event name.

import { reducedMotion, s } from "../lib/dom.js";

const STROKES_PER_SHEET = 25; // The hit after a full sheet starts a new one.
const MEANING = `One stroke for each hit; a new sheet after ${STROKES_PER_SHEET}`;
const GATE_WIDTH = 29; // From one gate to the next, in a drawing of 148 x 29.
const DRAW_MS = 220; // One stroke of a quick hand.
const FLOURISH_MS = 1800; // A whole sheet.

/** Returns a seeded random generator, so that a name looks the same on every paint. @param {string} name */
function createRandom(name) {
  // FNV-1a makes the seed; a linear congruential generator continues it.
  let seed = 2166136261;
  for (const char of name) seed = Math.imul(seed ^ (char.codePointAt(0) ?? 0), 16777619);
  return (/** @type {number} */ range) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
    return (seed / 2147483648) * range;
  };
}

/** Returns the path of every stroke on a sheet, in drawing order. @param {string} name */
function strokePaths(name) {
  const random = createRandom(name);
  const lean = random(1.3) - 0.4;
  const spread = 5.4 + random(0.4);
  return Array.from({ length: STROKES_PER_SHEET }, (_, i) => {
    const left = 5 + Math.floor(i / 5) * GATE_WIDTH;
    const x = left + (i % 5) * spread;
    const [a, b, c, d] = [0.9, 1.6, 1.2, 1.6].map(random);
    const [start, curve, end] = i % 5 < 4
      ? [[x - lean + a, 4 + b], [x + c, 11, x - c, 18], [x + lean + a / 2, 25 + d]]
      : [[left - 4.4 + a, 20 + b], [left + 5, 17 + c, left + 12, 12 - c], [left + 3 * spread + 5 + a, 8.5 + d]];
    return `M${start.map(round)}C${[...curve, ...end].map(round)}`;
  });
}

const round = (/** @type {number} */ n) => n.toFixed(1);
/** Returns the strokes on the last sheet of a count. @param {number} count */
const strokesOnSheet = (count) => (count > 0 ? ((count - 1) % STROKES_PER_SHEET) + 1 : 0);

/** Creates the marks of one event. Nothing is computed before the first `set`. @param {string} name */
export function createTallyMarks(name) {
  const [posts, strikes, newest] = ["posts", "strikes", "newest"].map((part) => s("path", { class: part, pathLength: 1 }));
  const el = s("svg", { class: "marks", viewBox: "0 0 148 29", "aria-hidden": "true" }, s("title", {}, MEANING), posts, strikes, newest);
  /** @type {string[]} */ let paths = [];
  let shownCount = -1;
  let latestCount = 0;
  let flourishing = false;

  function set(/** @type {number} */ count, animate = true) {
    latestCount = count;
    if (count === shownCount || flourishing) return;
    if (!paths.length) paths = strokePaths(name);
    const total = strokesOnSheet(count);
    // The newest strokes keep the accent colour until the next hit. More than five at once are not drawn one by one.
    const previous = shownCount < 0 && animate ? 0 : shownCount;
    const few = previous >= 0 && count > previous && count - previous <= 5;
    const old = Math.max(0, total - (few ? count - previous : 1));
    shownCount = count;
    posts.setAttribute("d", paths.slice(0, old).filter((_, i) => i % 5 < 4).join(""));
    strikes.setAttribute("d", paths.slice(0, old).filter((_, i) => i % 5 === 4).join(""));
    newest.setAttribute("d", paths.slice(old, total).join(""));
    if (!few || !animate || reducedMotion()) return;
    newest.animate([{ strokeDashoffset: 1 }, { strokeDashoffset: 0 }], { duration: DRAW_MS, easing: "ease-out" });
  }

  /** Fills the whole sheet, gate by gate, and then shows the count again that `set` was called with last. */
  async function flourish() {
    if (flourishing || reducedMotion()) return;
    flourishing = true;
    shownCount = -1;
    for (const path of [posts, strikes]) path.setAttribute("d", "");
    newest.setAttribute("d", paths.join(""));
    await newest.animate([{ strokeDashoffset: 1 }, { strokeDashoffset: 0, offset: 0.8 }, { strokeDashoffset: 0 }], { duration: FLOURISH_MS, easing: "ease-in-out" }).finished.catch(() => {});
    flourishing = false;
    set(latestCount, false);
  }

  return { el, set, flourish };
}
