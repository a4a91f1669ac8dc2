// The history page: a bar for each closed day, the parts and corrections of one day, and a comparison with another.

import { createBarChart } from "../components/bar-chart.js";
import { createChartNotes, noteOfBar } from "../components/chart-notes.js";
import { get, getText } from "../data/api.js";
import { compareDays, countsOfDay } from "../data/compare-days.js";
import { getNotesOfDay } from "../data/notes.js";
import { bdi, byId, download, h, table } from "../lib/dom.js";
import { comparison, dateTime, longDate, number, plural, shortDate, signed, timeWithSeconds } from "../lib/format.js";
import { link } from "../lib/router.js";

const ROWS_MAX = 200; // The CSV file has all rows of a day.
const DAYS_MAX = 90; // More bars would be too narrow to distinguish.
const DAY_MS = 86_400_000;

/** Another text in the address must not lead a request, which has the API key, to another path. @param {string} text */
const dayOrNone = (text) => (/^\d{4}-\d\d-\d\d$/.test(text) ? text : "");

function correctionRow(/** @type {Correction} */ { at, action, eventName, before, after }) {
  const verb = { reset: "Day reset", correct: "Corrected", delete: "Deleted" }[action] ?? action;
  const change = (/** @type {"count"|"total"} */ key) => (before && after && before[key] === after[key]) || !before ? []
    : [` ${key} `, h("del", { translate: false }, number(before[key])), ...(after ? [" ", h("ins", { translate: false }, number(after[key]))] : [])];
  return h("li", {}, h("time", { dateTime: at }, timeWithSeconds(Date.parse(at))), ` ${verb} `, eventName === null ? "" : bdi(eventName), ...change("count"), ...change("total"));
}

/** @returns {Page} */
export function createPage() {
  const body = byId("history-body");
  const note = byId("history-note");
  const daySelect = byId("history-choice");
  const otherSelect = byId("history-with");
  const chart = createBarChart(byId("history-chart"), ({ iso }) => goTo({ day: iso }), (as) => goTo({ as }));
  const notes = createChartNotes(byId("history-chart"), chart.showNotes);
  /** @type {DayRow[]} */ let days = [];
  let selection = { day: "", other: "", as: "" };
  let latestLoad = 0;
  /** Navigates to a changed view. @param {Partial<typeof selection>} change */
  function goTo(change) {
    const { day, other, as } = { ...selection, ...change };
    location.hash = link("history", day, { with: other, as });
  }

  async function load() {
    const loadNumber = ++latestLoad;
    body.ariaBusy = "true";
    const error = await get("/history").then((found) => { days = found; }, (reason) => reason);
    if (loadNumber !== latestLoad) return;
    note.textContent = error ? `Could not load the history. ${error.message}` : days.length ? "" : "No history yet. Today’s counts will appear here tomorrow.";
    body.hidden = !days.length;
    if (!days.length) return;
    const bars = days.slice(0, DAYS_MAX).reverse().map(({ day, hits }) => ({ start: Date.parse(day), iso: day, count: hits, known: true }));
    chart.set({ points: bars, line: [], event: "", step: "day", running: false, pickable: true, selected: selection.day || days[0].day }, `${plural(days.length, "day")}. Select one.`);
    chart.describe();
    notes.load(bars[0].start - DAY_MS); // A day of the server can begin earlier than the same day in UTC.
    await showDay(loadNumber, selection.day || days[0].day);
  }

  /** @param {number} loadNumber does nothing if a later load has begun @param {string} dayToShow */
  async function showDay(loadNumber, dayToShow) {
    const option = ({ day = "" }) => h("option", { value: day }, day ? longDate(day) : "None");
    daySelect.replaceChildren(...days.map(option));
    otherSelect.replaceChildren(...[{}, ...days.filter(({ day }) => day !== dayToShow)].map(option));
    daySelect.value = dayToShow;
    otherSelect.value = selection.other;
    const requests = [dayToShow, selection.other].map((day) => (day ? get(`/history/${day}`) : null));
    const found = await Promise.all([...requests, getNotesOfDay(dayToShow).catch(() => [])]).catch((error) => error);
    if (loadNumber !== latestLoad) return;
    body.ariaBusy = "false";
    const error = found instanceof Error && h("p", { className: "note" }, `Could not load this day. ${found.message}`);
    byId("history-day").replaceChildren(...(error ? [error] : dayDetails(found[0], found[1], found[2])));
  }

  /** @param {ClosedDay} day @param {ClosedDay|null} other @param {TimelineNote[]} notes @returns {Node[]} */
  function dayDetails(day, other, notes) {
    const counts = countsOfDay(day);
    const otherCounts = other && countsOfDay(other);
    const rows = compareDays(counts, otherCounts);
    const total = (/** @type {Iterable<number>} */ values) => [...values].reduce((sum, n) => sum + n, 0);
    const compared = otherCounts ? `, ${comparison(total(counts.values()), total(otherCounts.values()))} on ${longDate(other?.day ?? "")}` : "";
    const cells = rows.slice(0, ROWS_MAX).map(({ name, count, otherCount }) =>
      [h("a", { href: link("event", name, { range: day.day }), dir: "auto", translate: false }, name), number(count), ...(other ? [number(otherCount), signed(count - otherCount)] : [])]);
    const parts = day.parts.length > 1 ? [h("p", { className: "note" }, `Reset at ${day.parts.slice(0, -1).map(({ until }) => dateTime(Date.parse(until))).join(" and ")}. ` +
      `Hits in each part of the day: ${day.parts.map((part) => number(total(Object.values(part.counts)))).join(", ")}.`)] : [];
    const corrections = day.corrections?.length ? [h("h3", {}, "Corrections"), h("ul", { className: "corrections" }, ...day.corrections.map(correctionRow))] : [];
    const noted = notes.length ? [h("h3", {}, "Notes"), h("ul", { className: "corrections" }, ...notes.map((note) => h("li", {}, ...noteOfBar(note, "day"))))] : [];
    const rest = rows.length > ROWS_MAX ? [h("p", { className: "note" }, `Top ${number(ROWS_MAX)} of ${number(rows.length)}. Export the CSV for all.`)] : [];
    return [h("p", { className: "lead" }, `${plural(total(counts.values()), "hit")} across ${plural(counts.size, "event")}${compared}. `, h("a", { href: link("overview", "", { range: day.day }) }, "By hour")), ...parts, ...noted, ...corrections,
      table(["Event", ...(other ? [shortDate(day.day), shortDate(other.day), "Difference"] : ["Hits"])], cells), ...rest];
  }

  byId("history-csv").addEventListener("click", async () => {
    const text = await getText(`/history/${daySelect.value}?format=csv`).catch((error) => { note.textContent = error.message; });
    if (text) download(`tally-${daySelect.value}.csv`, text);
  });
  daySelect.addEventListener("change", () => goTo({ day: daySelect.value }));
  otherSelect.addEventListener("change", () => goTo({ day: daySelect.value, other: otherSelect.value }));

  return {
    title: () => (selection.day ? longDate(selection.day) : "History"),
    show({ name, query }) {
      selection = { day: dayOrNone(name), other: dayOrNone(query.get("with") ?? ""), as: query.get("as") ?? "" };
      chart.show(selection.as);
      load();
    },
    reload: load,
  };
}
