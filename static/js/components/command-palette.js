// The command palette: finds an event, a page or an action by a part of its name. It is loaded when its dialog is first opened.

import { bdi, byId, h, isolate } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { link, parseHash } from "../lib/router.js";
import { createSearch } from "../lib/search.js";

const RESULTS_MAX = 30; // More are found sooner by another letter.
const FEW = 10; // So many more are shown, too.
const ACTION_RANK = 1.5; // After names that begin with the query, and before those that contain it.
/** The actions of an event, by the button of its page. @type {Record<string, string>} */ const EVENT_ACTIONS = {
  "event-alert": "Alert me", "event-goal": "Set a goal", "share-open": "Embed & share", "event-users": "Top users",
};

/** @param {HTMLDialogElement} dialog @param {Counters} counters @param {Command[]} actions @returns {() => void} shows the results in the open dialog */
export function createCommandPalette(dialog, counters, actions) {
  const input = /** @type {HTMLInputElement} */ (dialog.querySelector("input"));
  const list = /** @type {HTMLElement} */ (byId("palette-results"));
  const note = byId("palette-note");
  /** @type {Command[]} */ let commands = [];
  /** @type {Command[]} */ let results = [];
  let selectedIndex = 0;

  function search() {
    const rank = createSearch(input.value);
    const ranked = [...commands.map((command) => ({ command, rank: rank(command.label) })), ...eventActions(input.value, commands).map((command) => ({ command, rank: ACTION_RANK }))];
    const found = ranked.filter((one) => one.rank).sort((a, b) => b.rank - a.rank);
    const shown = found.length > RESULTS_MAX + FEW ? RESULTS_MAX : found.length;
    results = found.slice(0, shown).map(({ command }) => command);
    list.replaceChildren(...results.map(({ label, hint, isName }, i) =>
      h("li", { id: `palette-${i}`, role: "option" }, isName ? bdi(label) : h("span", {}, label), h("span", { className: "rate" }, hint))));
    note.textContent = !found.length ? "Nothing found." : found.length > shown ? `${number(shown)} of ${number(found.length)}. Type more to find the others.` : "";
    select(0);
  }

  function select(/** @type {number} */ index) {
    selectedIndex = (index + results.length) % results.length || 0;
    [...list.children].forEach((el, i) => { el.ariaSelected = String(i === selectedIndex); });
    const selected = list.children[selectedIndex];
    selected ? input.setAttribute("aria-activedescendant", selected.id) : input.removeAttribute("aria-activedescendant");
    selected?.scrollIntoView({ block: "nearest" });
  }

  function run(/** @type {number} */ index) {
    if (!results[index]) return;
    dialog.close();
    results[index].run();
  }

  input.addEventListener("input", search);
  dialog.addEventListener("keydown", (event) => {
    const offset = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (offset) select(selectedIndex + offset);
    else if (event.key !== "Enter" || event.isComposing || event.target !== input) return;
    else run(selectedIndex);
    event.preventDefault();
  });
  list.addEventListener("click", ({ target }) => run([...list.children].findIndex((el) => el.contains(/** @type {Node} */ (target)))));
  dialog.addEventListener("click", ({ target }) => { if (target === dialog) dialog.close(); }); // Its backdrop.
  dialog.addEventListener("close", () => { input.value = ""; });

  return () => {
    commands = [...actions, ...choices(), ...events(counters)];
    search();
  };
}

/** Finds the actions whose labels have a word of the query. Its other words choose the event: the one of this page, or the largest. */
function eventActions(/** @type {string} */ query, /** @type {Command[]} */ commands) {
  const words = query.trim().toLowerCase().split(/\s+/);
  const { view, name: current } = parseHash(location.hash);
  const names = [...(view === "event" ? [current] : []), ...commands.filter(({ isName }) => isName).map(({ label }) => label)];
  return Object.entries(EVENT_ACTIONS).flatMap(([id, label]) => {
    const others = words.filter((word) => word.length < 3 || !label.toLowerCase().includes(word));
    const rank = createSearch(others.join(" "));
    const name = others.length < words.length && (names.find((one) => rank(one) === 2) ?? names.find(rank));
    return name ? [{ label: `${label}: ${isolate(name)}`, hint: "", run: () => clickOnPage(name, id) }] : [];
  });
}

/** Clicks a button of an event's page, once that is shown. @param {string} name an event name @param {string} id of the button */
function clickOnPage(name, id) {
  const { view, name: current } = parseHash(location.hash);
  if (view === "event" && name === current) return byId(id).click();
  addEventListener("hashchange", () => byId(id).click(), { once: true });
  location.hash = link("event", name);
}

/** Returns the choices of the visible page, such as the ranges of a chart. */
function choices() {
  const buttons = /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-page]:not([hidden]) .chart .toggle"));
  const inputs = /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("[data-page]:not([hidden]) .segments input:not(:checked)"));
  const clicks = [...buttons].filter((button) => button.offsetParent).map((button) => ({ label: button.textContent ?? "", hint: "", run: () => button.click() }));
  const picks = [...inputs].filter((input) => input.offsetParent).map((input) => {
    const group = input.closest("fieldset");
    const title = group?.ariaLabel ?? group?.querySelector("legend")?.textContent;
    return { label: `${title}: ${input.parentElement?.textContent}`, hint: "", run: () => input.click() };
  });
  return [...clicks, ...picks];
}

/** Returns the events of today, the largest count first, and then those of the last day. */
function events(/** @type {Counters} */ { names, counts, lastDay }) {
  const order = [...names.keys()].sort((a, b) => counts[b] - counts[a]);
  const today = new Set(names);
  const earlier = [...(lastDay?.counts.keys() ?? [])].filter((name) => !today.has(name));
  const command = (/** @type {string} */ name, /** @type {number} */ count) =>
    ({ label: name, hint: number(count), isName: true, run: () => { location.hash = link("event", name); } });
  return [...order.map((index) => command(names[index], counts[index])), ...earlier.map((name) => command(name, 0))];
}
