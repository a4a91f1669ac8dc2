// @ts-check
// One event: its number, its hours and days beside those before, its people, how to share it and how to correct it.

import { deleteEvent, getEvent, getSeries, putEvent } from "./api.js";
import { createChart } from "./chart.js";
import { confirmTyped } from "./confirm.js";
import { byId, copies, h, segments } from "./dom.js";
import { comparison, number, percent } from "./format.js";
import { createAudience, createFigures, createHero } from "./headline.js";
import { link } from "./router.js";
import { Series } from "./series.js";

const SERIES_MS = 10_000;
const TOTAL_MS = 30_000; // the total moves with the live count; asking corrects it after a reset
/** @type {Record<string, {step: import("./series.js").Step, points: number, label: string, words: string}>} */
const RANGES = {
  hour: { step: "minute", points: 60, label: "Hour", words: "60 minutes" },
  day: { step: "hour", points: 24, label: "Day", words: "24 hours" },
  week: { step: "day", points: 7, label: "Week", words: "7 days" },
  month: { step: "day", points: 30, label: "Month", words: "30 days" },
};

/** How an event is reached from elsewhere. @param {string} name @returns {Record<string, string>} */
function snippets(name) {
  const path = encodeURIComponent(name).replaceAll("'", "%27");
  const at = location.origin;
  const attribute = name.replaceAll("&", "&amp;").replaceAll('"', "&quot;");
  return {
    "Count a hit": `curl -X POST '${at}/event/${path}'`,
    "Follow it": `curl -N '${at}/stream?event=${path}'`,
    "A badge, in Markdown": `![hits](${at}/badge/${path}.svg)`,
    "A number in a frame": `<iframe src="${at}/embed/${path}" width="200" height="100" title="hits"></iframe>`,
    "A script for pages": `<script src="${at}/static/tally-1.js" defer></script>\n<span data-tally-count="${attribute}"></span>\n<button data-tally-hit="${attribute}">Click</button>`,
  };
}

/** @param {ReturnType<typeof import("./session.js").openSession>} session @param {() => void} changed */
export function createEvent({ counters, now }, changed) {
  const chart = createChart(byId("event-chart"));
  const minutes = new Series();
  let [name, range, series] = ["", "hour", new Series()];
  /** Its total without what is counted today. @type {number|null} */ let base = null;
  let [shown, asked, totalAsked, dirtyChart] = [-1, -SERIES_MS, -TOTAL_MS, false];
  let hero = createHero(byId("event-count"), byId("event-marks"), "");
  const set = createFigures(byId("event-figures"), {
    total: "Total", rate: "Hits per minute", part: "Of all hits today", users: "?Unique users today", sessions: "?Active sessions",
  });
  const audience = createAudience(set);
  const count = () => counters.of(name);
  const mark = segments(byId("event-range"), "range", Object.fromEntries(Object.entries(RANGES).map(([key, { label }]) => [key, label])),
    (value) => location.replace(link("event", name, { range: value === "hour" ? "" : value })));

  async function loadTotal() {
    if (performance.now() - totalAsked < TOTAL_MS) return;
    totalAsked = performance.now();
    const of = name;
    const value = await getEvent(name).catch(() => null);
    if (of !== name || !value) return;
    base = value.total - value.count;
    draw(false);
  }

  async function load() {
    if (performance.now() - asked < SERIES_MS) return;
    asked = performance.now();
    const [of, wanted] = [name, new Set([minutes, series])];
    const error = (await Promise.all([...wanted].map((one) =>
      getSeries(of, one.step, one.size * (one === series ? 2 : 1)).then(({ points }) => one.load(points), (reason) => reason)))).find(Boolean);
    if (of !== name || !wanted.has(series)) return;
    chart.say(error && !series.points.length ? `No history to show. ${error.message}` : "");
    redraw();
    chart.describe();
  }

  function redraw() {
    const { words, step } = RANGES[range];
    chart.set(series, `Last ${words}; the line is the ${words} before`);
    const over = series.over();
    byId("event-compare").textContent = over.now || over.before
      ? `${number(over.now)} hits in ${words}, ${comparison(over.now, over.before)} in the ${words} before. The running ${step} is left out.` : "";
  }

  /** @param {boolean} animate */
  function draw(animate) {
    const value = count();
    hero(value, animate);
    if (shown >= 0 && value > shown) {
      for (const one of new Set([minutes, series])) one.add(value - shown, now());
      dirtyChart = true;
    }
    shown = value;
    set("total", base === null ? "–" : number(base + value));
    set("part", counters.total ? percent(value / counters.total) : "–");
  }

  function fillShare() {
    byId("share-body").replaceChildren(...Object.entries(snippets(name)).map(([label, text]) => {
      const code = h("code", { tabIndex: 0 }, text);
      const button = h("button", { className: "button", type: "button", ariaLabel: `Copy: ${label}` }, "Copy");
      copies(button, code);
      return h("div", { className: "snippet" }, h("h3", {}, label), h("div", { className: "curl" }, code, button));
    }));
    byId("share").showModal();
  }

  /** Asks again for what a correction changed. */
  function renew() {
    [asked, totalAsked, base] = [-SERIES_MS, -TOTAL_MS, null];
    load();
    loadTotal();
  }

  const ask = (/** @type {Pick<Parameters<typeof confirmTyped>[0], "title"|"text"|"action"|"fields"|"run">} */ question) =>
    confirmTyped({ ...question, word: name, done: () => { changed(); renew(); } });
  byId("share-open").addEventListener("click", fillShare);
  byId("share-close").addEventListener("click", () => byId("share").close());
  byId("event-reset").addEventListener("click", () => ask({
    title: "Start this event’s day at 0?", action: "Set to 0",
    text: "Today’s count becomes 0. The total and the charts keep what was counted, and the history says that it was done.",
    run: () => putEvent(name, { count: 0 }),
  }));
  byId("event-correct").addEventListener("click", () => ask({
    title: "Correct these numbers", action: "Correct", text: "The correction is kept in the day’s history, with what was there before.",
    fields: [{ label: "Count today", name: "count", value: count() }, { label: "Total", name: "total", value: (base ?? 0) + count() }],
    run: (values) => putEvent(name, values),
  }));
  byId("event-delete").addEventListener("click", () => ask({
    title: "Delete this event?", action: "Delete", text: "Its count, its total, its charts and its people are forgotten. This cannot be undone.",
    run: () => deleteEvent(name),
  }));

  return {
    title: () => name,
    /** @param {import("./router.js").Route} route */
    show({ name: wanted, query }) {
      range = Object.hasOwn(RANGES, query.get("range") ?? "") ? String(query.get("range")) : "hour";
      series = new Series(RANGES[range].step, RANGES[range].points);
      mark(range);
      if (name !== wanted) {
        [name, shown, base, totalAsked] = [wanted, -1, null, -TOTAL_MS];
        byId("event-name").textContent = name;
        byId("event-users").href = link("leaderboard", "", { event: name });
        hero = createHero(byId("event-count"), byId("event-marks"), name);
        minutes.points = [];
      }
      byId("event-chart-title").textContent = `Hits per ${RANGES[range].step}`;
      asked = -SERIES_MS;
      load();
      loadTotal();
      audience(name);
    },
    hide() { byId("share").close(); },
    renew,
    paint: (/** @type {Set<number>} */ _, /** @type {boolean} */ remade) => draw(!remade),
    /** @param {boolean} synced */
    tick(synced) {
      const perMinute = minutes.perMinute(now());
      if (synced) set("rate", perMinute === null ? "–" : number(perMinute));
      if ((synced && series.advance(now())) || dirtyChart) redraw();
      dirtyChart = false;
      load();
      loadTotal();
      if (synced) audience(name);
    },
  };
}
