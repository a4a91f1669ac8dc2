// A list of names ordered by count. Rows move to their new ranks and show how far they moved.

import { bdi, h, reducedMotion } from "../lib/dom.js";
import { number, percent, timeWithSeconds } from "../lib/format.js";
import { link } from "../lib/router.js";
import { showDelta } from "./delta.js";

const MOVE_MS = 300; // Long enough to follow a row with the eye.
const BASELINE_MS = 300_000; // Ranks are compared with those at most five minutes ago.

/** @param {string} name @param {boolean} linked */
function createRow(name, linked) {
  const [bar, rank, change, delta, part, count] = ["share", "rank", "change", "delta", "part value", "count value"].map((className) => h("span", { className }));
  const label = h(linked ? "a" : "span", { className: "name", title: name, ...(linked && { href: link("event", name), ariaLabel: name }) }, bdi(name));
  return { el: h("li", {}, bar, rank, label, change, delta, part, count), bar, rank, change, delta, part, count };
}

/** @param {HTMLElement} list an ol @param {{parts?: boolean}} [options] parts: show each row's share of the total, and by how many hits it has changed */
export function createRanking(list, { parts = false } = {}) {
  /** @type {Map<string, ReturnType<typeof createRow>>} */ let rows = new Map();
  /** @type {Map<string, number>} */ let ranks = new Map();
  let baseline = { ranks, at: 0 };

  /** @param {HTMLElement} el @param {number|undefined} previous @param {number} rank */
  function showChange(el, previous, rank) {
    const gained = previous === undefined ? 0 : previous - rank;
    const text = baseline.ranks.size && previous === undefined ? "new" : gained ? `${gained > 0 ? "▲" : "▼"}${number(Math.abs(gained))}` : "";
    if (el.textContent === text) return;
    el.textContent = text;
    el.className = `change ${gained > 0 ? "up" : gained < 0 ? "down" : ""}`;
    el.title = text && `since ${timeWithSeconds(baseline.at)}`;
  }

  /**
   * @param {Row[]} best in their order @param {object} options
   * @param {number} options.total @param {boolean} [options.linked] whether each name is a link to its event @param {boolean} [options.animate]
   * @param {Movers|null} [options.movers] whose changes the rows show @param {(row: Row) => number} [options.sizeOf] the number by which the rows are ordered, negative for a loss
   */
  function draw(best, { total, linked = true, animate = true, movers = null, sizeOf = ({ count }) => count }) {
    if (Date.now() - baseline.at > BASELINE_MS) baseline = { ranks, at: Date.now() };
    const max = (best.length && Math.abs(sizeOf(best[0]))) || 1;
    const reordered = best.map(({ name }) => name).join("\n") !== [...rows.keys()].join("\n");
    if (reordered && rows.size && list.matches(":hover, :focus-within")) {
      // Nothing may move under the reader's pointer, so update the numbers only.
      for (const { name, count } of best) rows.get(name)?.count.replaceChildren(number(count));
      return;
    }
    // Measure before the first write, and only if something may move, because measuring forces a layout.
    const before = reordered && animate && !reducedMotion() ? [...rows.values()].map(({ el }) => /** @type {const} */ ([el, el.offsetTop])) : [];
    rows = new Map(best.map(({ name }) => [name, rows.get(name) ?? createRow(name, linked)]));
    ranks = new Map(best.map(({ name }, i) => [name, i + 1]));
    best.forEach((entry, i) => {
      const { name, count } = entry;
      const row = /** @type {ReturnType<typeof createRow>} */ (rows.get(name));
      if (list.children[i] !== row.el) list.insertBefore(row.el, list.children[i] ?? null);
      row.rank.textContent = number(i + 1);
      row.count.textContent = number(count);
      row.part.textContent = parts && total ? percent(count / total) : "";
      row.bar.style.transform = `scaleX(${(Math.abs(sizeOf(entry)) / max).toFixed(4)})`;
      row.bar.classList.toggle("loss", sizeOf(entry) < 0);
      showDelta(row.delta, movers, name, parts);
      showChange(row.change, baseline.ranks.get(name), i + 1);
    });
    while (list.children.length > rows.size) list.lastElementChild?.remove();
    for (const [el, top] of before) animateMove(el, top - el.offsetTop);
  }

  /** Starts another ranking, so that nothing moves from the previous one. */
  function clear() {
    rows = new Map();
    ranks = new Map();
    baseline = { ranks, at: 0 };
    list.replaceChildren();
  }

  return { draw, clear };
}

/** @param {HTMLElement} el @param {number} distance in px, from its new place to its old one */
function animateMove(el, distance) {
  if (!distance || !el.isConnected) return;
  el.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], { duration: MOVE_MS, easing: "ease-out" });
}
