// The chart of hits over the chosen range, compared with the previous period, and the hits per minute.

import { getFirstDay, getSeries, throttle } from "../data/api.js";
import { findPeak, peakOf } from "../data/peak.js";
import { dayOf, DAYS_MAX, daysRange, endOfMonth, parseRange, pointsOf, RANGE_LABELS } from "../data/ranges.js";
import { Series } from "../data/series.js";
import { createSegmentedControl, h, isolate, setText } from "../lib/dom.js";
import { comparison, dateTime, hourOfDay, longDate, number, plural } from "../lib/format.js";
import { link, parseHash } from "../lib/router.js";
import { createBarChart } from "./bar-chart.js";
import { createChartNotes } from "./chart-notes.js";

const RELOAD_MS = 10_000; // Live hits extend the bars; a reload corrects any drift.
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const LENGTHS = { minute: 60_000, hour: HOUR_MS, day: DAY_MS, month: DAY_MS }; // Months are loaded as days.
const MINUTES_KEPT_MS = 23 * HOUR_MS; // The server keeps the minutes of a day or longer.
const DEFAULT_DAYS = 7;

/** Returns a range in words: its title, how a sentence names it, the period before, and how much earlier it is. @param {ChartRange} range */
function describeRange({ words, from, to = "", hour, size }) {
  if (hour) return { title: dateTime(hour), period: "", preposition: "", before: "", earlier: "" };
  if (!from) return { title: `Last ${words}`, period: ` in the last ${words}`, preposition: "in ", before: `the previous ${words}`, earlier: words };
  return from === to ? { title: longDate(from), period: "", preposition: "", before: "the day before", earlier: "a day" }
    : { title: `${longDate(from)} – ${longDate(to)}`, period: "", preposition: "in ", before: `the ${size} days before`, earlier: `${size} days` };
}

/** @param {HTMLElement} host a section for a chart @param {() => number} now @param {(change: Record<string, string>) => void} onView called with a change of the address */
export function createHitsChart(host, now, onView) {
  const onRange = (/** @type {string} */ range) => onView({ range });
  const chart = createBarChart(host, open, (as) => onView({ as }), { tapTwice: true });
  const notes = createChartNotes(host, chart.showNotes);
  const fieldset = /** @type {HTMLElement} */ (host.querySelector("fieldset"));
  const selectRange = createSegmentedControl(fieldset, host.id, RANGE_LABELS, (value) => onRange(value === "hour" ? "" : value === "custom" ? lastDays() : value));
  const [from, to] = ["From", "To"].map((ariaLabel) => /** @type {HTMLInputElement} */ (h("input", { type: "date", ariaLabel, required: true })));
  const dates = h("p", { className: "dates" }, from, " to ", to);
  const problem = h("p", { className: "problem", role: "alert" });
  const peakLink = /** @type {HTMLAnchorElement} */ (h("a", {}));
  const peakNote = h("p", { className: "peak", hidden: true });
  /** The series whose peak is shown or requested. @type {Series|undefined} */ let peakSeries;
  let edited = false; // The dates have changes that the chart does not show yet.
  let firstDay = "";
  let name = "";
  /** @type {string|null} */ let value = null;
  let range = parseRange("");
  /** An event to compare with, or "". */ let other = "";
  let otherSeries = new Series();
  let minutes = new Series();
  let series = minutes;
  let running = true;
  let counted = false;
  const runningSeries = () => new Set(running ? [minutes, series] : [minutes]);
  fieldset.after(dates, problem);
  host.querySelector(".foot > .note")?.after(peakNote);

  /** Returns the server's day. */
  const today = () => minutes.points.findLast(({ iso }) => iso)?.iso.slice(0, 10) ?? dayOf(now());
  const daysAgo = (/** @type {number} */ days) => dayOf(Date.parse(today()) - days * DAY_MS);
  const lastDays = () => daysRange(daysAgo(DEFAULT_DAYS - 1), today());

  /** Shows a bar as a range of its own: a month by days, a day by hours, an hour by minutes. @param {Bucket} bucket */
  function open({ start, iso }) {
    if (range.step === "month") onRange(daysRange(iso.slice(0, 10), endOfMonth(iso)));
    else if (range.step === "day") onRange(iso.slice(0, 10));
    else if (hasMinutes(start)) onRange(iso);
  }

  const hasMinutes = (/** @type {number} */ start) => now() - start < MINUTES_KEPT_MS;

  /** @param {Series} one @param {Point[]} points @param {string} firstDay */
  function loadSeries(one, points, firstDay) {
    const selected = pointsOf(points, range);
    one.size = selected.size;
    one.load(selected.points, firstDay);
  }

  const loadMinutes = async () => minutes.load((await getSeries(name, "minute", 120)).points, await getFirstDay());

  async function loadRange() {
    const { step, points, until } = range;
    const loaded = series;
    const loadedOther = otherSeries;
    const request = (/** @type {string} */ event) => getSeries(event, step === "month" ? "day" : step, points, until);
    const [found, otherFound, first] = await Promise.all([request(name), other ? request(other) : null, getFirstDay()]);
    if (loaded !== series || loadedOther !== otherSeries) return;
    firstDay = first;
    loadSeries(series, found.points, firstDay);
    if (otherFound) loadSeries(otherSeries, otherFound.points, firstDay);
    running = Date.parse(found.points.at(-1)?.start ?? "") + LENGTHS[step] > now();
    if (step === "day" || step === "month") showPeak(found.points.filter(({ start }) => Date.parse(start) >= series.points[0].start));
  }

  /** Shows the busiest hour of the chart's days, with a link to its day. @param {Point[]} days */
  async function showPeak(days) {
    if (peakSeries === series) return; // One request is enough, because a peak is rarely now.
    const shown = (peakSeries = series);
    const { peak, step } = await findPeak(name, days).catch(() => ({ peak: undefined, step: "" }));
    if (shown !== series) return;
    peakNote.hidden = !peak;
    if (!peak) return;
    const { start, count } = peak;
    peakLink.textContent = `${step === "hour" ? hourOfDay(Date.parse(start)) : longDate(start)}, ${plural(count, "hit")}`;
    peakNote.replaceChildren(`Peak ${step}: `, peakLink);
    peakLink.href = link(name ? "event" : "overview", name, { ...Object.fromEntries(parseHash(location.hash).query), range: start.slice(0, 10) });
  }

  const load = throttle(RELOAD_MS, async () => {
    const requestedSeries = series;
    const requests = [loadRange(), ...(series === minutes ? [] : [loadMinutes()])].map((request) => request.then(() => null, (error) => error));
    const error = (await Promise.all(requests)).find(Boolean);
    if (requestedSeries !== series) return;
    host.ariaBusy = "false";
    draw();
    if (error && !series.points.length) chart.setNote(`Could not load this chart. ${error.message}`);
    chart.describe();
    if (series.points.length) notes.load(series.points[0].start);
  });

  function draw() {
    const { step } = range;
    const { title, period, preposition, before, earlier } = describeRange(range);
    const { all, completed, previous } = series.totals(running);
    const isComparable = series.previous.length > 0 && before && !other;
    const suffix = other ? ` (line: ${isolate(other)})` : isComparable ? ` (dotted: ${before})` : "";
    const line = other ? otherSeries.points : isComparable ? series.previous : [];
    const pickable = step !== "minute" && (step !== "hour" || hasMinutes(series.points.at(-1)?.start ?? 0));
    chart.set({ points: series.points, line, event: other, step, running, pickable }, title + suffix);
    const compared = other ? ` ${plural(otherSeries.totals().all, "hit")} of ${isolate(other)}.` : !isComparable ? ""
      : running ? ` Without the current ${step}: ${number(completed)}, ${comparison(completed, previous)} ${earlier} earlier.`
      : ` ${comparison(completed, previous)} ${preposition}${before}.`;
    const busiest = step === "hour" && peakOf(series.points);
    const peak = busiest ? `Peak hour: ${hourOfDay(busiest.start)}, ${plural(busiest.count, "hit")}. ` : "";
    const day = range.from === range.to && !running && range.from;
    chart.setNote(all || previous || other ? `${plural(all, "hit")}${period}.${compared} ${peak}` : "", ...(day ? [h("a", { href: link("history", day) }, "All events of this day")] : []));
  }

  function showDates() {
    dates.hidden = !range.from;
    edited &&= !dates.hidden && dates.contains(document.activeElement);
    problem.textContent = value && value !== "hour" && range === parseRange("") ? "The range in the address cannot be shown. This is the last hour." : "";
    if (edited) return;
    from.value = range.from ?? "";
    to.value = range.to ?? "";
    from.max = to.max = today();
  }

  function applyDates() {
    const chosen = daysRange(from.value, to.value);
    const first = firstDay || daysAgo(DAYS_MAX - 1);
    const valid = parseRange(chosen).from && from.value >= first && to.value <= today();
    problem.textContent = valid ? "" : `Enter an earlier and a later day from ${longDate(first)} to ${longDate(today())}, at most ${number(DAYS_MAX)} days.`;
    if (!valid) return;
    edited = false;
    if (chosen !== value) onRange(chosen);
  }

  // A date that is typed changes with each digit, so it is applied when the reader has finished.
  dates.addEventListener("input", () => { edited = true; });
  dates.addEventListener("keydown", ({ key }) => { if (key === "Enter") applyDates(); });
  dates.addEventListener("focusout", ({ relatedTarget }) => { if (edited && !dates.contains(/** @type {Node|null} */ (relatedTarget))) applyDates(); });

  return {
    /** @param {string} event an event name, or "" for all events @param {Record<string, string>} query of the address: its range, the event to compare with, and whether it is a table */
    show(event, { range: wanted = "", with: compareWith = "", as }) {
      chart.show(as);
      if (event === name && wanted === value && compareWith === other) return load();
      if (event !== name) minutes = new Series();
      chart.clear();
      peakNote.hidden = true;
      name = event;
      notes.show(name);
      value = wanted;
      other = compareWith;
      range = parseRange(wanted);
      const { step, size } = range;
      series = range === parseRange("") ? minutes : new Series(step, size);
      otherSeries = new Series(step, size);
      running = true;
      /** @type {HTMLElement} */ (host.querySelector("h2")).textContent = `Hits per ${step}`;
      selectRange(Object.keys(RANGE_LABELS).find((choice) => parseRange(choice) === range) ?? "custom");
      showDates();
      host.ariaBusy = "true";
      load.now();
    },
    count(/** @type {number} */ hits) {
      for (const one of runningSeries()) one.add(hits, now());
      counted = true;
    },
    /** @param {boolean} synced Without a connection, an empty minute would be a guess. */
    tick(synced) {
      if (synced && running) otherSeries.advance(now());
      const opened = synced && [...runningSeries()].filter((one) => one.advance(now())).includes(series);
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
