// A change against an earlier day or week in few characters, with the whole comparison as its accessible name.

import { comparedWithEarlierDays, comparison, number, ratio, time } from "../lib/format.js";

/** @param {Mover} mover @param {Movers} movers */
function sentence({ count, previous, weekAgo = null }, { window, until }) {
  if (window === "today") return comparedWithEarlierDays(until, count, previous, weekAgo);
  return `7 days until ${time(Date.parse(until))}: ${number(count)}, ${comparison(count, previous)} in the 7 days before (${number(previous)})`;
}

/** Shows nothing if there is nothing to compare with. @param {HTMLElement} el @param {Movers|null} movers @param {string} name @param {boolean} [inHits] */
export function showDelta(el, movers, name, inHits = false) {
  const mover = movers?.byName.get(name);
  const change = mover ? mover.count - mover.previous : 0;
  const size = mover && (inHits ? number(Math.abs(change)) : ratio(mover.count, mover.previous));
  const text = mover ? `${change > 0 ? "▲ " : change < 0 ? "▼ " : ""}${size}` : "";
  const title = movers && mover ? sentence(mover, movers) : "";
  if (el.textContent === text && el.title === title) return;
  el.textContent = text;
  el.className = `delta ${change > 0 ? "up" : change < 0 ? "down" : ""}`;
  el.title = el.ariaLabel = title;
  el.role = "img"; // Without a role, an element has no name for screen readers.
}
