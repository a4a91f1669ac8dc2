// A change against an earlier day or week in few characters, with the whole comparison as its accessible name.

import { h } from "../lib/dom.js";
import { comparedWithEarlierDays, comparison, number, ratio, signed, signedRatio, time } from "../lib/format.js";

/** @param {Mover} mover @param {Movers} movers */
function sentence({ count, previous, weekAgo = null }, { window, until }) {
  if (window === "today") return comparedWithEarlierDays(until, count, previous, weekAgo);
  return `7 days until ${time(Date.parse(until))}: ${number(count)}, ${comparison(count, previous)} in the 7 days before (${number(previous)})`;
}

/** Shows nothing if there is nothing to compare with. @param {HTMLElement} el @param {Movers|null} movers @param {string} name @param {boolean} [withHits] shows also by how many hits */
export function showDelta(el, movers, name, withHits = false) {
  const mover = movers?.byName.get(name);
  const change = mover ? mover.count - mover.previous : 0;
  const part = !mover ? "" : mover.previous || mover.weekAgo ? (withHits ? signedRatio : ratio)(mover.count, mover.previous) : "new";
  const text = !change ? part : withHits ? `${signed(change)} ${part}` : `${change > 0 ? "▲" : "▼"} ${part}`;
  const title = movers && mover ? sentence(mover, movers) : "";
  if (el.textContent === text && el.title === title) return;
  el.replaceChildren(...(change && withHits ? [h("span", { className: "by-hits" }, signed(change)), h("span", { className: "by-part" }, ` ${part}`)] : [text]));
  el.className = `delta ${withHits ? "with-hits " : ""}${change > 0 ? "up" : change < 0 ? "down" : ""}`;
  el.title = el.ariaLabel = title;
  el.role = "img"; // Without a role, an element has no name for screen readers.
}
