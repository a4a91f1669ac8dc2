// @ts-check
// The grid: one card per event, in chunks, touching only the cards that can be seen.

import { byId, h } from "./dom.js";
import { number, plural } from "./format.js";
import { createMarks } from "./marks.js";
import { tween } from "./tween.js";

const CHUNK = 120; // cards skipped together while off screen; divides by 1 to 6 and 8 columns
const GATE_ABOVE = 120; // smaller boards are cheap enough to keep every card current
const HOT_MS = 400; // how long a changed card stays lit; keeps it under three flashes a second
const RESORT_MS = 5000; // cards ordered by count change places no faster than this
const DEBOUNCE_MS = 80; // a fast typist should not sort 5,000 cards per key

/** @typedef {ReturnType<typeof createCard>} Card */

/** @param {string} name @param {number} index */
function createCard(name, index) {
  const text = document.createTextNode("");
  const marks = createMarks(name);
  const el = h("li", { className: "card", "data-event": name },
    h("p", { className: "name", dir: "auto", title: name }, name),
    h("p", { className: "count value", "data-count": "" }, text), marks.el);
  return { el, text, marks, name, lower: name.toLowerCase(), index, shown: -1, visible: false, stale: true };
}

/** @param {Card} card @param {number} count */
function write(card, count) {
  card.shown = count;
  card.text.nodeValue = number(count);
  // Long numbers step down in size instead of breaking the card.
  card.el.dataset.digits = card.text.length > 13 ? "xl" : card.text.length > 9 ? "l" : "m";
}

/** @param {HTMLElement} grid @param {import("./counters.js").Counters} counters */
export function createCards(grid, counters) {
  const [filter, sort, status, nothing] = ["filter", "sort", "match-count", "no-match"].map(byId);
  /** @type {Card[]} */ let cards = [];
  /** @type {Card[]} */ let order = [];
  /** @type {WeakMap<Element, Card>} */ const cardOf = new WeakMap();
  let [unsorted, sortedAt, debounce] = [false, 0, 0];

  const eye = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = /** @type {Card} */ (cardOf.get(target));
      card.visible = isIntersecting;
      if (isIntersecting && card.stale) paint(card, false);
    }
  }, { rootMargin: "150px" });

  /** @param {Card} card @param {boolean} animate */
  function paint(card, animate) {
    const count = counters.counts[card.index];
    if (count === undefined) return;
    card.stale = false;
    card.marks.set(count, animate);
    tween(card, animate ? Math.max(0, card.shown) : count, count, (n) => write(card, n));
    if (animate) heat(card);
  }

  /** @param {Card} card */
  function heat({ el }) {
    if (el.classList.contains("hot")) return;
    el.classList.add("hot");
    setTimeout(() => el.classList.remove("hot"), HOT_MS);
  }

  /** @param {string} name @param {number} index */
  function adopt(name, index) {
    const card = createCard(name, index);
    cardOf.set(card.el, card);
    eye.observe(card.el);
    return card;
  }

  /** Cards follow a new state of the model; known names keep their card. */
  function remake() {
    const known = new Map(cards.map((card) => [card.name, card]));
    cards = counters.names.map((name, index) => Object.assign(known.get(name) ?? adopt(name, index), { index }));
    const kept = new Set(cards);
    for (const card of known.values()) if (!kept.has(card)) eye.unobserve(card.el);
    layout();
  }

  /** New cards join at the end at once; a sorted grid puts them in place when it may move. */
  function extend() {
    const added = counters.names.slice(cards.length).map((name, i) => adopt(name, cards.length + i));
    cards.push(...added);
    order.push(...added.filter(matches));
    unsorted = true;
    place();
  }

  const matches = (/** @type {Card} */ card) => card.lower.includes(filter.value.trim().toLowerCase());

  function layout() {
    order = cards.filter(matches);
    if (sort.value === "name") order.sort((a, b) => a.name.localeCompare(b.name));
    if (sort.value === "newest") order.reverse();
    if (sort.value === "count") order.sort((a, b) => counters.counts[b.index] - counters.counts[a.index] || a.index - b.index);
    [unsorted, sortedAt] = [false, performance.now()];
    place();
  }

  /** Puts the cards where `order` says, with as few moves as possible. */
  function place() {
    grid.querySelector(".skeleton")?.remove();
    const chunks = Math.ceil(order.length / CHUNK);
    while (grid.children.length < chunks) grid.append(h("ul", { className: "chunk", role: "list" }));
    while (grid.children.length > chunks) grid.lastElementChild?.remove();
    order.forEach(({ el }, i) => {
      const chunk = grid.children[Math.floor(i / CHUNK)];
      const there = chunk.children[i % CHUNK] ?? null;
      if (there !== el) chunk.insertBefore(el, there);
    });
    [...grid.children].forEach((chunk, c) => {
      while (chunk.children.length > Math.min(CHUNK, order.length - c * CHUNK)) chunk.lastElementChild?.remove();
    });
    const all = plural(cards.length, "event");
    status.textContent = order.length === cards.length ? all : `${number(order.length)} of ${all}`;
    nothing.hidden = order.length > 0 || !cards.length;
    nothing.querySelector("q").textContent = filter.value.trim();
  }

  /** @param {Set<number>} dirty @param {boolean} remade */
  function update(dirty, remade) {
    if (remade) remake();
    else if (cards.length < counters.names.length) extend();
    unsorted ||= sort.value === "count" && dirty.size > 0;
    for (const index of dirty) {
      const card = cards[index];
      card.stale = !card.visible && cards.length > GATE_ABOVE;
      if (!card.stale) paint(card, card.visible && !remade);
    }
  }

  /** Keeps a live order fresh, but never under the reader's pointer or focus. */
  function resort() {
    const rested = sort.value !== "count" || performance.now() - sortedAt >= RESORT_MS;
    if (unsorted && rested && !grid.matches(":hover, :focus-within")) layout();
  }

  filter.addEventListener("input", () => {
    clearTimeout(debounce);
    debounce = setTimeout(layout, DEBOUNCE_MS);
  });
  sort.addEventListener("change", layout);
  return { update, resort, layout };
}
