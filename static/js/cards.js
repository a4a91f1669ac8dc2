// @ts-check
// The grid: one card per event, in chunks, touching only the cards that can be seen.

import { byId, h, s } from "./dom.js";
import { number, plural } from "./format.js";
import { createMarks } from "./marks.js";
import { pin, pins } from "./prefs.js";
import { link } from "./router.js";
import { floorPath, Sparks } from "./sparks.js";
import { tween } from "./tween.js";

const CHUNK = 120; // cards skipped together while off screen; divides by 1 to 6 and 8 columns
const GATE_ABOVE = 120; // smaller boards are cheap enough to keep every card current
const HOT_MS = 400; // how long a changed card stays lit; keeps it under three flashes a second
const RESORT_MS = 5000; // cards ordered by what changes move no faster than this
const DEBOUNCE_MS = 80; // a fast typist should not sort 5,000 cards per key

/** @typedef {ReturnType<typeof createCard>} Card */

/** What every card has from the beginning: a name to be found and a number. @param {string} name @param {number} index @param {boolean} pinned */
function createCard(name, index, pinned) {
  const text = document.createTextNode("");
  const anchor = h("a", { className: "name", dir: "auto", title: name, href: link("event", name), tabIndex: -1 }, name);
  const el = h("li", { className: "card", "data-event": name }, anchor, h("p", { className: "count value", "data-count": "" }, text));
  const drawn = /** @type {ReturnType<typeof draw>|null} */ (null);
  return { el, text, anchor, drawn, name, lower: name.toLowerCase(), index, pinned, shown: -1, changed: 0, visible: false, stale: true };
}

/** What it gets when it is first seen, which of thousands most are not. @param {{el: HTMLElement, name: string, pinned: boolean}} card */
function draw({ el, name, pinned }) {
  const marks = createMarks(name);
  const [rate, floor] = [h("p", { className: "rate value" }), s("path", {})];
  const star = h("button", { className: "pin", type: "button", tabIndex: -1, ariaLabel: `Pin ${name}`, ariaPressed: String(pinned) },
    s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { d: "M8 1.6l2 4.1 4.5.6-3.3 3.1.8 4.5L8 11.8l-4 2.1.8-4.5L1.5 6.3 6 5.7z" })));
  el.firstElementChild?.after(star);
  el.append(marks.el, rate, s("svg", { class: "floor", viewBox: "0 0 240 24", preserveAspectRatio: "none", "aria-hidden": "true" }, floor));
  return { marks, rate, floor, star };
}

/** @param {Card} card @param {number} count */
function write(card, count) {
  card.shown = count;
  card.text.nodeValue = number(count);
  // Long numbers step down in size instead of breaking the card.
  card.el.dataset.digits = card.text.length > 13 ? "xl" : card.text.length > 9 ? "l" : "m";
}

/** @param {HTMLElement} grid @param {ReturnType<typeof import("./session.js").openSession>} session */
export function createCards(grid, { counters, now }) {
  const [filter, sort, status, nothing] = ["filter", "sort", "match-count", "no-match"].map(byId);
  const sparks = new Sparks();
  const pinned = pins();
  /** @type {Card[]} */ let cards = [];
  /** @type {Card[]} */ let order = [];
  /** @type {Card|null} the one that Tab leads to */ let current = null;
  /** @type {WeakMap<Element, Card>} */ const cardOf = new WeakMap();
  /** @type {Set<Card>} */ const seen = new Set();
  let [unsorted, sortedAt, debounce] = [false, 0, 0];

  const eye = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = /** @type {Card} */ (cardOf.get(target));
      card.visible = isIntersecting;
      isIntersecting ? seen.add(card) : seen.delete(card);
      const first = isIntersecting && !card.drawn;
      if (first) card.drawn = draw(card);
      if (first && card === current) aim(card);
      if (first || (isIntersecting && card.stale)) paint(card, false);
    }
  }, { rootMargin: "150px" });

  /** @param {Card} card @param {boolean} animate */
  function paint(card, animate) {
    const count = counters.counts[card.index];
    if (count === undefined) return;
    card.stale = false;
    card.drawn?.marks.set(count, animate);
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
    const card = createCard(name, index, pinned.has(name));
    cardOf.set(card.el, card);
    eye.observe(card.el);
    return card;
  }

  /** Cards follow a new state of the model; known names keep their card. */
  function remake() {
    const known = new Map(cards.map((card) => [card.name, card]));
    cards = counters.names.map((name, index) => Object.assign(known.get(name) ?? adopt(name, index), { index }));
    const kept = new Set(cards);
    for (const card of known.values()) if (!kept.has(card)) { eye.unobserve(card.el); seen.delete(card); }
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
  /** @type {Record<string, (a: Card, b: Card) => number>} */
  const by = {
    first: (a, b) => a.index - b.index,
    newest: (a, b) => b.index - a.index,
    name: (a, b) => a.name.localeCompare(b.name),
    count: (a, b) => counters.counts[b.index] - counters.counts[a.index] || a.index - b.index,
    recent: (a, b) => b.changed - a.changed || a.index - b.index,
  };

  function layout() {
    order = cards.filter(matches).sort((a, b) => Number(b.pinned) - Number(a.pinned) || by[sort.value](a, b));
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
    if (!current || !current.el.isConnected) aim(order[0] ?? null);
    const all = plural(cards.length, "event");
    status.textContent = order.length === cards.length ? all : `${number(order.length)} of ${all}`;
    nothing.hidden = order.length > 0 || !cards.length;
    nothing.querySelector("q").textContent = filter.value.trim();
  }

  /** One stop for Tab in a grid of thousands; arrows go on from there. @param {Card|null} card */
  function aim(card) {
    for (const el of [current?.anchor, current?.drawn?.star]) if (el) el.tabIndex = -1;
    current = card;
    for (const el of [card?.anchor, card?.drawn?.star]) if (el) el.tabIndex = 0;
  }

  /** @param {string} key @returns {number} how many cards further */
  function stride(key) {
    const top = current?.el.offsetTop;
    const columns = Math.max(1, [...(current?.el.parentElement?.children ?? [])].filter((el) => /** @type {HTMLElement} */ (el).offsetTop === top).length);
    return { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -order.length, End: order.length }[key] ?? 0;
  }

  /** @param {Set<number>} dirty @param {boolean} remade @param {boolean} lively */
  function update(dirty, remade, lively) {
    if (remade) remake();
    else if (cards.length < counters.names.length) extend();
    unsorted ||= ["count", "recent"].includes(sort.value) && dirty.size > 0;
    const at = performance.now();
    for (const index of dirty) {
      const card = cards[index];
      if (!remade) card.changed = at;
      card.stale = !card.visible && cards.length > GATE_ABOVE;
      if (!card.stale) paint(card, card.visible && lively);
    }
  }

  /** Rates and the last hour, of what is in sight. */
  function trace() {
    for (const card of seen) {
      sparks.follow(card.name, counters.counts[card.index] ?? 0, now());
      const series = sparks.of(card.name);
      if (!series?.points.length || !card.drawn) continue;
      series.advance(now());
      const path = floorPath(series);
      if (card.drawn.floor.getAttribute("d") !== path) card.drawn.floor.setAttribute("d", path);
      const rate = `${number(series.perMinute(now()) ?? 0)} / min`;
      if (card.drawn.rate.textContent !== rate) card.drawn.rate.textContent = rate;
    }
  }

  /** Keeps a live order fresh, but never under the reader's pointer or focus. */
  function resort() {
    if (unsorted && performance.now() - sortedAt >= RESORT_MS && !grid.matches(":hover, :focus-within")) layout();
  }

  async function tick() {
    resort();
    trace();
    const index = new Map([...seen].map((card) => [card.name, card.index]));
    if (await sparks.load([...index.keys()], (name) => counters.counts[index.get(name) ?? -1] ?? 0)) trace();
  }

  /** @param {Card} card */
  function togglePin(card) {
    card.pinned = !card.pinned;
    if (card.drawn) card.drawn.star.ariaPressed = String(card.pinned);
    card.pinned ? pinned.add(card.name) : pinned.delete(card.name);
    pin(pinned);
    layout();
    card.drawn?.star.focus(); // it stays under the reader's hand wherever it went
  }

  filter.addEventListener("input", () => {
    clearTimeout(debounce);
    debounce = setTimeout(layout, DEBOUNCE_MS);
  });
  sort.addEventListener("change", layout);
  grid.addEventListener("click", (event) => {
    const target = /** @type {Element} */ (event.target);
    const card = cardOf.get(target.closest(".card") ?? grid);
    if (card && target.closest(".pin")) togglePin(card);
    else if (card && !target.closest("a") && getSelection()?.isCollapsed !== false) card.anchor.click();
  });
  grid.addEventListener("focusin", (event) => aim(cardOf.get(/** @type {Element} */ (event.target).closest(".card") ?? grid) ?? current));
  grid.addEventListener("keydown", (event) => {
    const by = stride(event.key);
    if (!by || !current) return;
    event.preventDefault();
    order[Math.min(order.length - 1, Math.max(0, order.indexOf(current) + by))].anchor.focus();
  });
  return { update, tick, layout };
}
