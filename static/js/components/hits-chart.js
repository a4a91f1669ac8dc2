// Hits over a time that the reader chooses, beside the time before; and how many there are in a minute.

import { getSeries, paced } from "../data/api.js";
import { Series } from "../data/series.js";
import { segments } from "../lib/dom.js";
import { comparison, number } from "../lib/format.js";
import { createChart } from "./bar-chart.js";

const ASK_MS = 10_000; // live hits carry the bars on; asking corrects any drift
/** @type {Record<string, {step: Step, size: number, label: string, words: string}>} */
const RANGES = {
  hour: { step: "minute", size: 60, label: "Hour", words: "60 minutes" },
  day: { step: "hour", size: 24, label: "Day", words: "24 hours" },
  week: { step: "day", size: 7, label: "Week", words: "7 days" },
  month: { step: "day", size: 30, label: "Month", words: "30 days" },
};

/** @param {HTMLElement} host a section for a chart @param {() => number} now @param {(range: string) => void} choose "" is the first one */
export function createHits(host, now, choose) {
  const chart = createChart(host);
  const labels = Object.fromEntries(Object.entries(RANGES).map(([range, { label }]) => [range, label]));
  const mark = segments(/** @type {HTMLElement} */ (host.querySelector("fieldset")), host.id, labels, (range) => choose(range === "hour" ? "" : range));
  let [name, range, minutes, series, moved] = ["", "", new Series(), new Series(), false];
  const all = () => new Set([minutes, series]);

  const load = paced(ASK_MS, async () => {
    const of = series;
    const asked = [...all()].map((one) => getSeries(name, one.step, 2 * one.size).then(({ points }) => one.load(points), (error) => error));
    const error = (await Promise.all(asked)).find(Boolean);
    if (of !== series) return;
    host.ariaBusy = "false";
    draw();
    if (error && !series.points.length) chart.say(`No history to show. ${error.message}`);
    chart.describe();
  });

  function draw() {
    const { words, step } = RANGES[range];
    const over = series.over();
    chart.set(series, `Last ${words}; the line is the ${words} before`);
    chart.say(over.now || over.before
      ? `${number(over.now)} hits in ${words}, ${comparison(over.now, over.before)} in the ${words} before. The running ${step} is left out.` : "");
  }

  return {
    /** @param {string} of an event, or "" for all of them @param {string} wanted */
    show(of, wanted) {
      const next = Object.hasOwn(RANGES, wanted) ? wanted : "hour";
      if (of === name && next === range) return load();
      if (of !== name) minutes = new Series();
      [name, range] = [of, next];
      const { step, size } = RANGES[range];
      series = step === "minute" ? minutes : new Series(step, size);
      /** @type {HTMLElement} */ (host.querySelector("h2")).textContent = `Hits per ${step}`;
      mark(range);
      host.ariaBusy = "true";
      load.now();
    },
    /** @param {number} hits */
    count(hits) {
      for (const one of all()) one.add(hits, now());
      moved = true;
    },
    /** @param {boolean} synced without the server an empty minute would be a guess, not a zero */
    tick(synced) {
      const opened = synced && [...all()].filter((one) => one.advance(now())).includes(series);
      if (opened || moved) draw();
      moved = false;
      load();
    },
    renew: load.now,
    /** As words; a dash before anything is known. */
    rate() {
      const perMinute = minutes.perMinute(now());
      return perMinute === null ? "–" : number(perMinute);
    },
  };
}
