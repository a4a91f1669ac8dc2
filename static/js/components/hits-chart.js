// The chart of hits over the chosen range, compared with the previous period, and the hits per minute.

import { getFirstDay, getSeries, throttle } from "../data/api.js";
import { Series } from "../data/series.js";
import { createSegmentedControl } from "../lib/dom.js";
import { comparison, number, plural } from "../lib/format.js";
import { createBarChart } from "./bar-chart.js";
import { createChartNotes } from "./chart-notes.js";

const RELOAD_MS = 10_000; // Live hits extend the bars; a reload corrects any drift.
/** @type {Record<string, {step: Step, size: number, label: string, words: string}>} */ const RANGES = {
  hour: { step: "minute", size: 60, label: "Hour", words: "60 minutes" },
  day: { step: "hour", size: 24, label: "Day", words: "24 hours" },
  week: { step: "day", size: 7, label: "Week", words: "7 days" },
  month: { step: "day", size: 30, label: "Month", words: "30 days" },
};

/** @param {HTMLElement} host a section for a chart @param {() => number} now @param {(range: string) => void} onRange called with "" for an hour */
export function createHitsChart(host, now, onRange) {
  const chart = createBarChart(host);
  const loadNotes = createChartNotes(host, chart.showNotes);
  const labels = Object.fromEntries(Object.entries(RANGES).map(([value, { label }]) => [value, label]));
  const fieldset = /** @type {HTMLElement} */ (host.querySelector("fieldset"));
  const selectRange = createSegmentedControl(fieldset, host.id, labels, (value) => onRange(value === "hour" ? "" : value));
  let name = "";
  let range = "";
  let minutes = new Series();
  let series = minutes;
  let counted = false;
  const bothSeries = () => [...new Set([minutes, series])];

  const load = throttle(RELOAD_MS, async () => {
    const requestedSeries = series;
    const requests = bothSeries().map((one) => Promise.all([getSeries(name, one.step, 2 * one.size), getFirstDay()])
      .then(([{ points }, firstDay]) => one.load(points, firstDay), (error) => error));
    const error = (await Promise.all(requests)).find(Boolean);
    if (requestedSeries !== series) return;
    host.ariaBusy = "false";
    draw();
    if (error && !series.points.length) chart.setNote(`Could not load this chart. ${error.message}`);
    chart.describe();
    if (series.points.length) loadNotes(name, series.points[0].start);
  });

  function draw() {
    const { words, step } = RANGES[range];
    const { all, completed, previous } = series.totals();
    const isComparable = series.previous.length > 0;
    chart.set(series, `Last ${words}${isComparable ? ` (dotted: previous ${words})` : ""}`);
    const compared = isComparable ? ` Without the current ${step}: ${number(completed)}, ${comparison(completed, previous)} in the previous ${words}.` : "";
    chart.setNote(all || previous ? `${plural(all, "hit")} in the last ${words}.${compared}` : "");
  }

  return {
    /** @param {string} event an event name, or "" for all events @param {string} wanted a range; an unknown one shows an hour */
    show(event, wanted) {
      const next = Object.hasOwn(RANGES, wanted) ? wanted : "hour";
      if (event === name && next === range) return load();
      if (event !== name) minutes = new Series();
      name = event;
      range = next;
      const { step, size } = RANGES[range];
      series = step === "minute" ? minutes : new Series(step, size);
      /** @type {HTMLElement} */ (host.querySelector("h2")).textContent = `Hits per ${step}`;
      selectRange(range);
      host.ariaBusy = "true";
      load.now();
    },
    count(/** @type {number} */ hits) {
      for (const one of bothSeries()) one.add(hits, now());
      counted = true;
    },
    /** @param {boolean} synced Without a connection, an empty minute would be a guess. */
    tick(synced) {
      const opened = synced && bothSeries().filter((one) => one.advance(now())).includes(series);
      if (opened || counted) draw();
      counted = false;
      load();
    },
    reload: load.now,
    /** Returns the hits per minute, or a dash while they are unknown. */
    rate() {
      const perMinute = minutes.perMinute(now());
      return perMinute === null ? "–" : number(perMinute);
    },
  };
}
