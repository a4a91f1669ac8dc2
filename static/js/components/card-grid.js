// The grid: a card for each event, of which those near the screen are in the document.

import { getLeaderboard, paced } from "../data/api.js";
import { choose as prefer, pins } from "../data/prefs.js";
import { Series } from "../data/series.js";
import { byId, h, s, say } from "../lib/dom.js";
import { number, plural } from "../lib/format.js";
import { link } from "../lib/router.js";
import { createSparks } from "./sparklines.js";
import { createMarks } from "./tally-marks.js";

const AROUND = 120; // cards before and after the screen: a small board is there whole, and the browser's search finds all of it
const HOT_MS = 400; // how long a changed card stays lit; keeps it under three flashes a second
const RESORT_MS = 5000; // cards ordered by what changes move no faster than this
const DEBOUNCE_MS = 80; // a fast typist should not sort 10,000 cards per key
const RATES_MS = 30_000;
const RATED = 1000; // as many as the server ranks

const { compare } = new Intl.Collator(undefined, { numeric: true });

/** @typedef {ReturnType<typeof createCard>} Card */

/** @param {string} name @param {boolean} pinned */
function createCard(name, pinned) {
  const marks = createMarks(name);
  const [text, rate, floor] = [document.createTextNode(""), h("p", { className: "rate value" }), s("path", {})];
  const anchor = h("a", { className: "name", dir: "auto", title: name, href: link("event", name), tabIndex: -1 }, name);
  const star = h("button", { className: "pin", type: "button", tabIndex: -1, ariaLabel: `Pin ${name}`, ariaPressed: String(pinned) },
    s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { d: "M8 1.6l2 4.1 4.5.6-3.3 3.1.8 4.5L8 11.8l-4 2.1.8-4.5L1.5 6.3 6 5.7z" })));
  const el = h("li", { className: "card", "data-event": name }, anchor, star, h("p", { className: "count value", "data-count": "" }, text), marks.el, rate,
    s("svg", { class: "floor", viewBox: "0 0 240 24", preserveAspectRatio: "none", "aria-hidden": "true" }, floor));
  return { el, anchor, star, marks, text, rate, floor, name, index: -1, shown: -1, series: new Series(), asked: -Infinity, followed: 0 };
}

/** @param {HTMLElement} list @param {Session} session @param {(change: Record<string, string>) => void} choose */
export function createCards(list, session, choose) {
  const { counters } = session;
  const [filter, sort, status, nothing] = ["filter", "sort", "match-count", "no-match"].map(byId);
  const sparks = createSparks(session);
  const pinned = pins();
  /** @type {number[]} what matches, in the order of the grid */ let order = [];
  /** @type {Map<string, Card>} those in the document */ let cards = new Map();
  /** @type {Map<string, number>} hits of the last hour */ let rates = new Map();
  /** @type {Card|undefined} the one that Tab leads to */ let current;
  let [columns, row, sight] = [1, 1, [0, 0]];
  let [known, unsorted, sortedAt, debounce, framed] = [0, false, 0, 0, 0];

  const nameOf = (/** @type {number} */ index) => counters.names[index];
  const matches = (/** @type {number} */ index) => nameOf(index).toLowerCase().includes(filter.value.trim().toLowerCase());
  const inSight = () => order.slice(...sight).flatMap((index) => cards.get(nameOf(index)) ?? []);
  const first = (/** @type {number} */ index) => Number(!pinned.has(nameOf(index)));
  /** @type {Record<string, (a: number, b: number) => number>} */
  const by = {
    first: (a, b) => a - b,
    name: (a, b) => compare(nameOf(a), nameOf(b)),
    count: (a, b) => counters.counts[b] - counters.counts[a] || a - b,
    rate: (a, b) => (rates.get(nameOf(b)) ?? 0) - (rates.get(nameOf(a)) ?? 0) || by.count(a, b),
  };

  const askRates = paced(RATES_MS, async () => {
    const { rows } = await getLeaderboard("1h", RATED).catch(() => ({ rows: [] }));
    rates = new Map(rows.map(({ eventName = "", count }) => [eventName, count]));
    layout();
  });

  function layout() {
    order = [...counters.names.keys()].filter(matches).sort(by[sort.value]);
    if (pinned.size) order.sort((a, b) => first(a) - first(b));
    [known, unsorted, sortedAt] = [counters.names.length, false, performance.now()];
    place();
  }

  /** New cards join at the end at once; a sorted grid puts them in place when it may move. */
  function extend() {
    for (; known < counters.names.length; known++) if (matches(known)) order.push(known);
    unsorted = true;
    place();
  }

  /** Puts into the document what is near the screen, with room above and below for the rest. */
  function place() {
    if (!list.offsetParent) return;
    const { gridTemplateColumns, gridAutoRows, rowGap } = getComputedStyle(list);
    [columns, row] = [gridTemplateColumns.split(" ").length, parseFloat(gridAutoRows) + parseFloat(rowGap)];
    const [above, rows] = [-list.getBoundingClientRect().top, Math.ceil(order.length / columns)];
    sight = [Math.floor(above / row), Math.ceil((above + innerHeight) / row) + 1].map((at) => columns * Math.min(rows, Math.max(0, at)));
    const begin = Math.max(0, sight[0] - columns * Math.ceil(AROUND / columns));
    const near = order.slice(begin, sight[1] + AROUND);
    list.style.paddingTop = `${(row * begin) / columns}px`;
    list.style.paddingBottom = `${row * Math.ceil((order.length - begin - near.length) / columns)}px`;
    fill(near, begin);
    tell();
  }

  /** @param {number[]} near @param {number} begin how many come before them */
  function fill(near, begin) {
    const before = cards;
    cards = new Map(near.map((index) => [nameOf(index), before.get(nameOf(index)) ?? createCard(nameOf(index), !first(index))]));
    for (const el of [...list.children]) if (!cards.has(el.getAttribute("data-event") ?? "")) el.remove();
    [...cards.values()].forEach((card, i) => {
      if (list.children[i] !== card.el) list.insertBefore(card.el, list.children[i] ?? null);
      [card.el.ariaPosInSet, card.el.ariaSetSize] = [String(begin + i + 1), String(order.length)];
      card.index = near[i];
      paint(card, false);
    });
    if (!current?.el.isConnected) aim(cards.get(nameOf(order[sight[0]])) ?? cards.values().next().value);
  }

  function tell() {
    const all = plural(counters.names.length, "event");
    const said = order.length === counters.names.length ? all : `${number(order.length)} of ${all}`;
    say(status, said);
    nothing.hidden = order.length > 0 || !counters.names.length;
    nothing.querySelector("q").textContent = filter.value.trim();
  }

  /** @param {Card} card @param {boolean} animate */
  function paint(card, animate) {
    const { el, text, marks } = card;
    const count = counters.counts[card.index];
    if (card.shown === count) return;
    card.shown = count;
    text.data = number(count);
    // Long numbers step down in size instead of breaking the card.
    el.dataset.digits = text.length > 13 ? "xl" : text.length > 9 ? "l" : "m";
    marks.set(count, animate);
    if (!animate || el.classList.contains("hot")) return;
    el.classList.add("hot");
    setTimeout(() => el.classList.remove("hot"), HOT_MS);
  }

  /** One stop for Tab in a grid of thousands; arrows go on from there. @param {Card} [card] */
  function aim(card) {
    for (const el of [current?.anchor, current?.star]) if (el) el.tabIndex = -1;
    current = card;
    for (const el of [card?.anchor, card?.star]) if (el) el.tabIndex = 0;
  }

  /** @param {number} at its place in the order */
  function reach(at) {
    const name = nameOf(order[Math.min(order.length - 1, Math.max(0, at))]);
    if (!cards.has(name)) {
      scrollTo(0, scrollY + list.getBoundingClientRect().top + row * Math.floor(at / columns) - innerHeight / 2);
      place();
    }
    cards.get(name)?.anchor.focus();
  }

  /** @param {Card} card */
  function togglePin(card) {
    pinned.has(card.name) ? pinned.delete(card.name) : pinned.add(card.name);
    card.star.ariaPressed = String(pinned.has(card.name));
    prefer("pins", JSON.stringify([...pinned]));
    layout();
    card.star.focus(); // it stays under the reader's hand wherever it went
  }

  /** @param {Event} event */
  const cardAt = ({ target }) => cards.get(/** @type {Element} */ (target).closest(".card")?.getAttribute("data-event") ?? "");

  filter.addEventListener("input", () => {
    clearTimeout(debounce);
    debounce = setTimeout(() => choose({ filter: filter.value }), DEBOUNCE_MS);
  });
  sort.addEventListener("change", () => choose({ sort: sort.value === "first" ? "" : sort.value }));
  list.addEventListener("click", (event) => {
    const [target, card] = [/** @type {Element} */ (event.target), cardAt(event)];
    if (card && target.closest(".pin")) togglePin(card);
    else if (card && !target.closest("a") && getSelection()?.isCollapsed !== false) card.anchor.click();
  });
  list.addEventListener("focusin", (event) => aim(cardAt(event)));
  list.addEventListener("keydown", (event) => {
    const all = order.length;
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -all, End: all }[event.key];
    if (!by || !current) return;
    event.preventDefault();
    reach(order.indexOf(current.index) + by);
  });
  addEventListener("scroll", () => {
    framed ||= requestAnimationFrame(() => { framed = 0; place(); });
  }, { passive: true });
  addEventListener("resize", place);

  return {
    /** As the address says; a repaint puts it in order. @param {string} wanted @param {string} ordered */
    show(wanted, ordered) {
      clearTimeout(debounce);
      filter.value = wanted;
      sort.value = Object.hasOwn(by, ordered) ? ordered : "first";
      if (sort.value === "rate") askRates();
    },
    /** @param {Set<number>} dirty @param {boolean} remade @param {boolean} lively */
    update(dirty, remade, lively) {
      unsorted ||= sort.value === "count" && dirty.size > 0;
      if (remade) layout();
      else if (known < counters.names.length) extend();
      for (const card of inSight()) if (dirty.has(card.index)) paint(card, lively);
    },
    tick() {
      // A live order is kept fresh, but never under the reader's pointer or focus.
      const may = !list.matches(":hover, :focus-within");
      if (may && sort.value === "rate") askRates();
      if (may && unsorted && performance.now() - sortedAt >= RESORT_MS) layout();
      for (const card of cards.values()) paint(card, false); // also those out of sight, which are read and searched
      sparks.draw(inSight());
      sparks.load(inSight());
    },
  };
}
