// The grid of event cards. Only the cards near the screen are in the document.

import { getLeaderboard, throttle } from "../data/api.js";
import { MOVERS } from "../data/movers.js";
import { onPrefChange, pinnedNames, setPref } from "../data/prefs.js";
import { Series } from "../data/series.js";
import { byId, h, nameParts, s, setText } from "../lib/dom.js";
import { number, plural, shortDate } from "../lib/format.js";
import { link } from "../lib/router.js";
import { createSearch } from "../lib/search.js";
import { showDelta } from "./delta.js";
import { createGoalBar } from "./goal-bar.js";
import { createSparklines } from "./sparklines.js";
import { createTallyMarks } from "./tally-marks.js";

const OVERSCAN = 120; // Cards before and after the screen. A small grid is complete, so the browser's search finds all of it.
const FLASH_MS = 400; // Keeps a card under three flashes a second.
const SORT_MS = 5000; // A live order changes no faster than this.
const DEBOUNCE_MS = 80; // Typing should not sort 10,000 cards per key.
const RATES_MS = 30_000;
const RATES_MAX = 1000; // The server ranks no more.

const { compare } = new Intl.Collator(undefined, { numeric: true });

/** @typedef {ReturnType<typeof createCard>} Card */

/** @param {string} name @param {boolean} pinned */
function createCard(name, pinned) {
  const marks = createTallyMarks(name);
  const goal = createGoalBar();
  const count = document.createTextNode("");
  const delta = h("p", { className: "delta" });
  const rate = h("p", { className: "rate value" });
  const sparkline = s("path", {});
  const anchor = h("a", { className: "name", dir: "auto", title: name, ariaLabel: name, href: link("event", name), tabIndex: -1 }, ...nameParts(name));
  const pin = h("button", { className: "pin", type: "button", tabIndex: -1, ariaLabel: `Pin ${name}`, ariaPressed: String(pinned) },
    s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { d: "M8 1.6l2 4.1 4.5.6-3.3 3.1.8 4.5L8 11.8l-4 2.1.8-4.5L1.5 6.3 6 5.7z" })));
  const el = h("li", { className: "card", "data-event": name }, anchor, pin, h("p", { className: "count value", "data-count": "" }, count), delta, goal.el, marks.el, rate,
    s("svg", { class: "sparkline", viewBox: "0 0 240 24", preserveAspectRatio: "none", "aria-hidden": "true" }, sparkline));
  return { el, anchor, pin, marks, goal, count, delta, rate, sparkline, name, index: -1, shownCount: -1, note: "", series: new Series(), seriesRequestedAt: -Infinity, received: 0 };
}

/** @param {HTMLElement} list @param {Session} session @param {(change: Record<string, string>) => void} onChoose called with a new filter or sort */
export function createCardGrid(list, session, onChoose) {
  const { counters, now } = session;
  const movers = MOVERS.today;
  const filter = byId("filter");
  const sort = byId("sort");
  const noMatch = byId("no-match");
  const sparklines = createSparklines(session);
  let pinned = pinnedNames();
  /** The events of the last day, and the pinned ones. Those without a hit today have the indices -1, -2 and so on. @type {string[]} */ let known = [];
  /** Indices of the matching events, in the order of the grid. @type {number[]} */ let order = [];
  /** The cards in the document. @type {Map<string, Card>} */ let cards = new Map();
  /** Hits of the last hour. @type {Map<string, number>} */ let rates = new Map();
  /** The card that Tab leads to. @type {Card|undefined} */ let current;
  let columns = 1;
  let rowHeight = 1;
  let visibleRange = [0, 0];
  let ordering = { length: 0, size: 0, at: 0, stale: false };
  let debounceTimer = 0;
  let frameRequest = 0;

  const nameOf = (/** @type {number} */ index) => (index < 0 ? known[-1 - index] : counters.names[index]);
  const countOf = (/** @type {number} */ index) => (index < 0 ? 0 : counters.counts[index]);
  const firstSeen = (/** @type {number} */ index) => (index < 0 ? counters.names.length - index : index);
  const visibleCards = () => order.slice(...visibleRange).flatMap((index) => cards.get(nameOf(index)) ?? []);
  const pinRank = (/** @type {number} */ index) => Number(!pinned.has(nameOf(index)));
  /** @type {Record<string, (a: number, b: number) => number>} */ const comparators = {
    first: (a, b) => firstSeen(a) - firstSeen(b),
    name: (a, b) => compare(nameOf(a), nameOf(b)),
    count: (a, b) => countOf(b) - countOf(a) || firstSeen(a) - firstSeen(b),
    change: (a, b) => movers.changeOf(nameOf(b)) - movers.changeOf(nameOf(a)) || comparators.count(a, b),
    rate: (a, b) => (rates.get(nameOf(b)) ?? 0) - (rates.get(nameOf(a)) ?? 0) || comparators.count(a, b),
  };

  const loadRates = throttle(RATES_MS, async () => {
    const { rows } = await getLeaderboard("1h", RATES_MAX).catch(() => ({ rows: [] }));
    rates = new Map(rows.map(({ eventName = "", count }) => [eventName, count]));
    reorder();
  });

  async function loadMovers() {
    if (await movers.load(now()) && sort.value === "change") reorder();
  }

  /** Returns the indices of all events: those with a hit today, then the other known ones. */
  function allIndices() {
    known = [...new Set([...(counters.lastDay?.counts.keys() ?? []), ...pinned])];
    const today = new Set(known.length ? counters.names : []);
    return [...counters.names.keys(), ...known.flatMap((name, i) => (today.has(name) ? [] : [-1 - i]))];
  }

  function reorder() {
    const all = allIndices();
    const matches = createSearch(filter.value);
    order = all.filter((index) => matches(nameOf(index))).sort(comparators[sort.value]);
    if (pinned.size) order.sort((a, b) => pinRank(a) - pinRank(b));
    ordering = { length: counters.names.length, size: all.length, at: performance.now(), stale: false };
    renderViewport();
  }

  /** Appends new events at once. The next `reorder` sorts them in. */
  function appendNew() {
    const added = new Set(counters.names.slice(ordering.length));
    if (known.some((name) => added.has(name))) return reorder();
    ordering.size += added.size;
    const matches = createSearch(filter.value);
    for (; ordering.length < counters.names.length; ordering.length++) if (matches(nameOf(ordering.length))) order.push(ordering.length);
    ordering.stale = true;
    renderViewport();
  }

  /** Renders the cards near the screen, with padding in place of the others. */
  function renderViewport() {
    if (!list.offsetParent) return;
    const { gridTemplateColumns, gridAutoRows, rowGap } = getComputedStyle(list);
    columns = gridTemplateColumns.split(" ").length;
    rowHeight = parseFloat(gridAutoRows) + parseFloat(rowGap);
    const above = -list.getBoundingClientRect().top;
    const rows = Math.ceil(order.length / columns);
    visibleRange = [Math.floor(above / rowHeight), Math.ceil((above + innerHeight) / rowHeight) + 1].map((row) => columns * Math.min(rows, Math.max(0, row)));
    const start = Math.max(0, visibleRange[0] - columns * Math.ceil(OVERSCAN / columns));
    const indices = order.slice(start, visibleRange[1] + OVERSCAN);
    list.style.paddingTop = `${(rowHeight * start) / columns}px`;
    list.style.paddingBottom = `${rowHeight * Math.ceil((order.length - start - indices.length) / columns)}px`;
    renderCards(indices, start);
    updateSummary();
  }

  /** @param {number[]} indices @param {number} start the position of the first one in the order */
  function renderCards(indices, start) {
    const previous = cards;
    cards = new Map(indices.map((index) => [nameOf(index), previous.get(nameOf(index)) ?? createCard(nameOf(index), !pinRank(index))]));
    for (const el of [...list.children]) if (!cards.has(el.getAttribute("data-event") ?? "")) el.remove();
    [...cards.values()].forEach((card, i) => {
      if (list.children[i] !== card.el) list.insertBefore(card.el, list.children[i] ?? null);
      card.el.ariaPosInSet = String(start + i + 1);
      card.el.ariaSetSize = String(order.length);
      card.index = indices[i];
      paintCard(card, false, false);
    });
    if (!current?.el.isConnected) setTabStop(cards.get(nameOf(order[visibleRange[0]])) ?? cards.values().next().value);
  }

  function updateSummary() {
    const total = plural(ordering.size, "event");
    setText(byId("match-count"), order.length === ordering.size ? total : `${number(order.length)} of ${total}`);
    noMatch.hidden = order.length > 0 || !ordering.size;
    noMatch.querySelector("q").textContent = filter.value.trim();
  }

  /** @param {Card} card @param {boolean} animate @param {boolean} live whether hits have just arrived */
  function paintCard(card, animate, live) {
    const { el } = card;
    const count = countOf(card.index);
    const lastCount = counters.lastDay?.counts.get(card.name);
    card.note = count || !counters.lastDay || !lastCount ? "" : `${number(lastCount)} on ${shortDate(counters.lastDay.day)}`;
    el.classList.toggle("idle", !count);
    showDelta(card.delta, movers, card.name, sort.value === "change");
    if (card.note) setText(card.rate, card.note);
    if (card.goal.draw(session.goals.of(card.name), live)) card.marks.flourish();
    el.classList.toggle("with-goal", !card.goal.el.hidden);
    if (card.shownCount === count) return;
    card.shownCount = count;
    card.count.data = number(count);
    el.dataset.digits = card.count.length > 13 ? "xl" : card.count.length > 9 ? "l" : "m"; // The style sheet shrinks long numbers.
    card.marks.set(count, animate);
    if (!animate || el.classList.contains("flash")) return;
    el.classList.add("flash");
    setTimeout(() => el.classList.remove("flash"), FLASH_MS);
  }

  /** Makes a card the only tab stop of the grid; arrow keys move on from there. @param {Card} [card] */
  function setTabStop(card) {
    for (const el of [current?.anchor, current?.pin]) if (el) el.tabIndex = -1;
    current = card;
    for (const el of [card?.anchor, card?.pin]) if (el) el.tabIndex = 0;
  }

  /** @param {number} position in the order */
  function focusCard(position) {
    const name = nameOf(order[Math.min(order.length - 1, Math.max(0, position))]);
    if (!cards.has(name)) {
      scrollTo(0, scrollY + list.getBoundingClientRect().top + rowHeight * Math.floor(position / columns) - innerHeight / 2);
      renderViewport();
    }
    cards.get(name)?.anchor.focus();
  }

  function togglePin(/** @type {Card} */ card) {
    pinned.has(card.name) ? pinned.delete(card.name) : pinned.add(card.name);
    card.pin.ariaPressed = String(pinned.has(card.name));
    setPref("pins", JSON.stringify([...pinned]));
    reorder();
    card.pin.focus(); // The card may have moved in the document, which loses the focus.
  }

  const cardAt = (/** @type {Event} */ { target }) => cards.get(/** @type {Element} */ (target).closest(".card")?.getAttribute("data-event") ?? "");

  filter.addEventListener("input", () => {
    clearTimeout(debounceTimer);
    debounceTimer = setTimeout(() => onChoose({ filter: filter.value }), DEBOUNCE_MS);
  });
  sort.addEventListener("change", () => onChoose({ sort: sort.value === "first" ? "" : sort.value }));
  list.addEventListener("click", (event) => {
    const target = /** @type {Element} */ (event.target);
    const card = cardAt(event);
    if (card && target.closest(".pin")) togglePin(card);
    else if (card && !target.closest("a") && getSelection()?.isCollapsed !== false) card.anchor.click();
  });
  list.addEventListener("focusin", (event) => setTabStop(cardAt(event)));
  list.addEventListener("keydown", (event) => {
    const all = order.length;
    const offset = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -all, End: all }[event.key];
    if (!offset || !current) return;
    event.preventDefault();
    focusCard(order.indexOf(current.index) + offset);
  });
  addEventListener("scroll", () => { frameRequest ||= requestAnimationFrame(() => { frameRequest = 0; renderViewport(); }); }, { passive: true });
  addEventListener("resize", renderViewport);
  onPrefChange((name) => {
    if (name !== "pins") return;
    pinned = pinnedNames();
    for (const card of cards.values()) card.pin.ariaPressed = String(pinned.has(card.name));
    reorder();
  });

  return {
    /** Takes the filter and the order from the address. The next full `update` applies them. @param {string} filterText @param {string} sortKey */
    show(filterText, sortKey) {
      clearTimeout(debounceTimer);
      filter.value = filterText;
      sort.value = Object.hasOwn(comparators, sortKey) ? sortKey : "first";
      if (sort.value === "rate") loadRates();
    },
    /** @param {Set<number>} dirty @param {boolean} full @param {boolean} animate */
    update(dirty, full, animate) {
      ordering.stale ||= sort.value === "count" && dirty.size > 0;
      if (full) reorder();
      else if (ordering.length < counters.names.length) appendNew();
      for (const card of visibleCards()) if (dirty.has(card.index)) paintCard(card, animate, !full);
    },
    /** Returns the events with hits that match the filter, in the order of the grid. @returns {Row[]} */
    rows: () => order.filter((index) => index >= 0).map((index) => ({ name: nameOf(index), count: countOf(index) })),
    /** Moves the focus to the card of an event. Returns false if it is not near the screen. @param {string} name */
    focus(name) {
      renderViewport();
      cards.get(name)?.anchor.focus({ preventScroll: true });
      return cards.has(name);
    },
    /** Loads the charts of the cards again. */
    reload() {
      for (const card of cards.values()) card.seriesRequestedAt = -Infinity;
    },
    tick() {
      // Never reorder under the reader's pointer or focus.
      loadMovers();
      const mayMove = !list.matches(":hover, :focus-within");
      if (mayMove && sort.value === "rate") loadRates();
      if (mayMove && ordering.stale && performance.now() - ordering.at >= SORT_MS) reorder();
      // Screen readers and the browser's search also reach the cards outside the screen.
      for (const card of cards.values()) paintCard(card, false, true);
      sparklines.draw(visibleCards());
      sparklines.load(visibleCards());
    },
  };
}
