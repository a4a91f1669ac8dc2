// @ts-check
// The ten largest counts; rows glide to their new places.

import { h, reducedMotion } from "./dom.js";
import { number } from "./format.js";

const SIZE = 10;
const GLIDE_MS = 300; // long enough to follow a row with the eye

/** Indices of the largest counts, in one pass. @param {number[]} counts @returns {number[]} */
export function top(counts) {
  /** @type {number[]} */ const best = [];
  counts.forEach((count, index) => {
    if (best.length === SIZE && count <= counts[best[SIZE - 1]]) return;
    // Equal counts keep the server's order, so rows do not swap for nothing.
    const at = best.findIndex((other) => counts[other] < count);
    best.splice(at < 0 ? best.length : at, 0, index);
    if (best.length > SIZE) best.pop();
  });
  return best;
}

/** @param {string} name */
function createRow(name) {
  const [bar, rank, count] = ["share", "rank", "count value"].map((className) => h("span", { className }));
  return { el: h("li", {}, bar, rank, h("bdi", { className: "name", dir: "auto", title: name }, name), count), bar, rank, count };
}

/** @param {HTMLElement} list @param {import("./counters.js").Counters} counters */
export function createLeaderboard(list, counters) {
  /** @type {Map<string, ReturnType<typeof createRow>>} */ let rows = new Map();

  return function draw() {
    const best = top(counters.counts);
    const most = Math.max(1, counters.counts[best[0]]);
    const before = [...rows.values()].map(({ el }) => /** @type {const} */ ([el, el.offsetTop]));
    rows = new Map(best.map((index) => [counters.names[index], rows.get(counters.names[index]) ?? createRow(counters.names[index])]));
    [...rows.values()].forEach(({ el, bar, rank, count }, i) => {
      if (list.children[i] !== el) list.insertBefore(el, list.children[i] ?? null);
      rank.textContent = number(i + 1);
      count.textContent = number(counters.counts[best[i]]);
      bar.style.transform = `scaleX(${(counters.counts[best[i]] / most).toFixed(4)})`;
    });
    while (list.children.length > rows.size) list.lastElementChild?.remove();
    if (!reducedMotion.matches) for (const [el, from] of before) glide(el, from - el.offsetTop);
  };
}

/** Plays the move from the old place to the new one. @param {HTMLElement} el @param {number} by */
function glide(el, by) {
  if (!by || !el.isConnected) return;
  el.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: GLIDE_MS, easing: "ease-out" });
}
