// Names in the order of their counts; rows glide to their new places and say how far they came.

import { h, reducedMotion } from "../lib/dom.js";
import { clock, number, percent } from "../lib/format.js";
import { link } from "../lib/router.js";

const GLIDE_MS = 300; // long enough to follow a row with the eye
const BASELINE_MS = 300_000; // a change of rank is one since at most five minutes ago

/** @param {string} name @param {boolean} linked */
function createRow(name, linked) {
  const [bar, rank, moved, count, part] = ["share", "rank", "moved", "count value", "part value"].map((className) => h("span", { className }));
  const label = h(linked ? "a" : "span", { className: "name", title: name, ...(linked && { href: link("event", name) }) }, h("bdi", { dir: "auto" }, name));
  return { el: h("li", {}, bar, rank, label, moved, part, count), bar, rank, moved, count, part };
}

/** @param {HTMLElement} list an ol @param {{parts?: boolean}} [options] parts: with each row's share of all */
export function createRanking(list, { parts = false } = {}) {
  /** @type {Map<string, ReturnType<typeof createRow>>} */ let rows = new Map();
  /** @type {Map<string, number>} what each row's rank was then */ let base = new Map();
  /** @type {Map<string, number>} */ let ranks = new Map();
  let since = 0;

  /** @param {HTMLElement} el @param {number|undefined} from @param {number} to */
  function tell(el, from, to) {
    const by = from === undefined ? 0 : from - to;
    const said = base.size && from === undefined ? "new" : by ? `${by > 0 ? "▲" : "▼"}${number(Math.abs(by))}` : "";
    if (el.textContent === said) return;
    el.textContent = said;
    el.className = `moved ${by > 0 ? "up" : by < 0 ? "down" : ""}`;
    el.title = said && `since ${clock(since)}`;
  }

  /** @param {Row[]} best @param {{all: number, linked?: boolean, lively?: boolean}} how all: the sum; linked: to their event; lively: they glide */
  function draw(best, { all, linked = true, lively = true }) {
    if (Date.now() - since > BASELINE_MS) [base, since] = [ranks, Date.now()];
    const most = Math.max(1, best[0]?.count ?? 0);
    const moves = best.map(({ name }) => name).join("\n") !== [...rows.keys()].join("\n");
    if (moves && rows.size && list.matches(":hover, :focus-within")) {
      // Nothing goes from under the reader's pointer: numbers change, places wait.
      for (const { name, count } of best) rows.get(name)?.count.replaceChildren(number(count));
      return;
    }
    // The browser is asked for places before anything is written, and only where something may move.
    const before = moves && lively && !reducedMotion() ? [...rows.values()].map(({ el }) => /** @type {const} */ ([el, el.offsetTop])) : [];
    rows = new Map(best.map(({ name }) => [name, rows.get(name) ?? createRow(name, linked)]));
    ranks = new Map(best.map(({ name }, i) => [name, i + 1]));
    best.forEach(({ name, count }, i) => {
      const row = /** @type {ReturnType<typeof createRow>} */ (rows.get(name));
      if (list.children[i] !== row.el) list.insertBefore(row.el, list.children[i] ?? null);
      row.rank.textContent = number(i + 1);
      row.count.textContent = number(count);
      row.part.textContent = parts && all ? percent(count / all) : "";
      row.bar.style.transform = `scaleX(${(count / most).toFixed(4)})`;
      tell(row.moved, base.get(name), i + 1);
    });
    while (list.children.length > rows.size) list.lastElementChild?.remove();
    for (const [el, from] of before) glide(el, from - el.offsetTop);
  }

  /** Another ranking begins: nothing glides from the one before. */
  function clear() {
    [rows, base, ranks, since] = [new Map(), new Map(), new Map(), 0];
    list.replaceChildren();
  }

  return { draw, clear };
}

/** Plays the move from the old place to the new one. @param {HTMLElement} el @param {number} by */
function glide(el, by) {
  if (!by || !el.isConnected) return;
  el.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: GLIDE_MS, easing: "ease-out" });
}
