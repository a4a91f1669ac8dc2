// One event: its number, its hours and days beside those before, its people, how to share it and how to correct it.

import { confirmTyped } from "../components/confirm-dialog.js";
import { createHeadline } from "../components/headline.js";
import { createHits } from "../components/hits-chart.js";
import { get, paced, pathOf, send } from "../data/api.js";
import { byId, copies, h } from "../lib/dom.js";
import { percent, number } from "../lib/format.js";
import { go, link } from "../lib/router.js";

const TOTAL_MS = 30_000; // the total moves with the live count; asking corrects it after a reset

const BADGE = "A badge, in Markdown";

/** How an event is reached from elsewhere. @param {string} name @returns {Record<string, string>} */
function snippets(name) {
  const path = encodeURIComponent(name).replaceAll("'", "%27");
  const at = location.origin;
  const attribute = name.replaceAll("&", "&amp;").replaceAll('"', "&quot;");
  return {
    "Count a hit": `curl -X POST '${at}/event/${path}'`,
    "Follow it": `curl -N '${at}/stream?event=${path}'`,
    [BADGE]: `![hits](${at}/badge/${path}.svg)`,
    "A number in a frame": `<iframe src="${at}/embed/${path}" width="200" height="100" title="hits"></iframe>`,
    "A script for pages": `<script src="${at}/static/tally-1.js" defer></script>\n<span data-tally-count="${attribute}"></span>\n<button data-tally-hit="${attribute}">Click</button>`,
  };
}

/** @param {Session} session @param {() => void} changed @returns {Page} */
export function createEvent({ counters, now }, changed) {
  let [name, shown] = ["", -1];
  /** Its total without what is counted today. @type {number|null} */ let base = null;
  const hits = createHits(byId("event-chart"), now, (range) => go(link("event", name, { range })));
  const headline = createHeadline(byId("event-today"), {
    total: "Total", rate: "Hits per minute", part: "Of all hits today", users: "Unique users today", sessions: "Active sessions",
  });
  const count = () => counters.of(name);

  const loadTotal = paced(TOTAL_MS, async () => {
    const of = name;
    /** @type {Value|null} */ const value = await get(pathOf(name)).catch(() => null);
    if (of !== name || !value) return;
    base = value.total - value.count;
    draw(false);
  });

  /** @param {boolean} animate */
  function draw(animate) {
    const value = count();
    headline.count(value, animate);
    if (shown >= 0 && value > shown) hits.count(value - shown);
    shown = value;
    headline.set("total", base === null ? "–" : number(base + value));
    headline.set("part", counters.total ? percent(value / counters.total) : "–");
  }

  function fillShare() {
    // Asked for without a key, as a reader's browser does it.
    const badge = h("img", { src: `/badge/${encodeURIComponent(name)}.svg`, alt: `Badge of ${name}` });
    badge.onerror = () => badge.replaceWith(h("p", { className: "note" }, "This server shows it to nobody without a key."));
    byId("share-body").replaceChildren(...Object.entries(snippets(name)).map(([label, text]) => {
      const code = h("code", { tabIndex: 0 }, text);
      const button = h("button", { className: "button", type: "button", ariaLabel: `Copy: ${label}` }, "Copy");
      copies(button, code);
      return h("div", { className: "snippet" }, h("h3", {}, label), ...(label === BADGE ? [badge] : []), h("div", { className: "curl" }, code, button));
    }));
    byId("share").showModal();
  }

  /** Asks again for what a correction changed. */
  function renew() {
    base = null;
    hits.renew();
    loadTotal.now();
  }

  const ask = (/** @type {Omit<Question, "word"|"done">} */ question) =>
    confirmTyped({ ...question, word: name, done: () => { changed(); renew(); } });
  byId("share-open").addEventListener("click", fillShare);
  byId("event-reset").addEventListener("click", () => ask({
    title: "Start this event’s day at 0?", action: "Set to 0",
    text: "Today’s count becomes 0. The total and the charts keep what was counted, and the history says that it was done.",
    run: () => send("PUT", pathOf(name), { count: 0 }),
  }));
  byId("event-correct").addEventListener("click", () => ask({
    title: "Correct these numbers", action: "Correct", text: "The correction is kept in the day’s history, with what was there before.",
    fields: [{ label: "Count today", name: "count", value: count() }, { label: "Total", name: "total", value: (base ?? 0) + count() }],
    run: (values) => send("PUT", pathOf(name), values),
  }));
  byId("event-delete").addEventListener("click", () => ask({
    title: "Delete this event?", action: "Delete", text: "Its count, its total, its charts and its people are forgotten. This cannot be undone.",
    run: () => send("DELETE", pathOf(name)),
  }));

  return {
    title: () => name,
    show({ name: wanted, query }) {
      if (name !== wanted) {
        [name, shown, base] = [wanted, -1, null];
        byId("event-name").textContent = name;
        byId("event-users").href = link("leaderboard", "", { event: name });
        headline.show(name);
        loadTotal.now();
      }
      hits.show(name, query.get("range") ?? "");
    },
    hide: () => byId("share").close(),
    renew,
    paint: (_, remade) => draw(!remade),
    tick(synced) {
      hits.tick(synced);
      loadTotal();
      if (!synced) return; // the last numbers stay
      headline.set("rate", hits.rate());
      headline.askPeople();
    },
  };
}
