// The days that are over: a bar each, what each was made of, and two of them side by side.

import { createChart } from "../components/bar-chart.js";
import { get, getText } from "../data/api.js";
import { sideBySide, sumOf } from "../data/compare-days.js";
import { bdi, byId, download, h, table } from "../lib/dom.js";
import { clock, comparison, day as dayName, dayOfMonth, moment, number, plural, signed } from "../lib/format.js";
import { link } from "../lib/router.js";

const ROWS = 200; // of a day that are shown at once; the file has them all
const DAYS = 90; // bars that can be told apart

/** @param {Correction} correction what was there before is struck through, as on paper */
function correctionRow({ at, action, eventName, before, after }) {
  const what = { reset: "Day reset", correct: "Corrected", delete: "Deleted" }[action] ?? action;
  const change = (/** @type {"count"|"total"} */ key) => (before && after && before[key] === after[key]) || !before ? []
    : [` ${key} `, h("del", {}, number(before[key])), ...(after ? [" ", h("ins", {}, number(after[key]))] : [])];
  return h("li", {}, h("time", { dateTime: at }, clock(Date.parse(at))), ` ${what} `, eventName === null ? "" : bdi(eventName), ...change("count"), ...change("total"));
}

/** @returns {Page} */
export function createHistory() {
  const [body, note, choice, other] = ["history-body", "history-note", "history-choice", "history-with"].map(byId);
  const chart = createChart(byId("history-chart"), ({ iso }) => go(iso, compared));
  /** @type {DayRow[]} */ let days = [];
  let [shown, compared, turn] = ["", "", 0];
  const go = (/** @type {string} */ day, /** @type {string} */ beside) => { location.hash = link("history", day, { with: beside }); };

  async function load() {
    const mine = ++turn;
    body.ariaBusy = "true";
    const error = await get("/history").then((found) => { days = found; }, (reason) => reason);
    if (mine !== turn) return;
    note.textContent = error ? `The history could not be loaded. ${error.message}` : days.length ? "" : "No day is over yet. Today will be here tomorrow.";
    body.hidden = !days.length;
    if (!days.length) return;
    const bars = days.slice(0, DAYS).reverse().map(({ day, hits }) => ({ start: Date.parse(day), iso: day, count: hits }));
    chart.set({ points: bars, step: "day" }, `${plural(days.length, "day")}; choose one`, false);
    chart.describe();
    await open(mine, shown || days[0].day);
  }

  /** @param {number} mine whether it is still asked for @param {string} chosen */
  async function open(mine, chosen) {
    const option = ({ day = "" }) => h("option", { value: day }, day ? dayName(day) : "no other day");
    choice.replaceChildren(...days.map(option));
    other.replaceChildren(...[{}, ...days.filter(({ day }) => day !== chosen)].map(option));
    [choice.value, other.value] = [chosen, compared];
    const found = await Promise.all([chosen, compared].map((day) => (day ? get(`/history/${day}`) : null))).catch((error) => error);
    if (mine !== turn) return;
    body.ariaBusy = "false";
    const wrong = found instanceof Error && h("p", { className: "note" }, `This day could not be loaded. ${found.message}`);
    byId("history-day").replaceChildren(...(wrong ? [wrong] : describe(found[0], found[1])));
  }

  /** @param {ClosedDay} a @param {ClosedDay|null} b @returns {Node[]} */
  function describe(a, b) {
    const [one, two] = [sumOf(a), b && sumOf(b)];
    const rows = sideBySide(one, two);
    const all = (/** @type {Map<string, number>} */ counts) => [...counts.values()].reduce((sum, n) => sum + n, 0);
    const says = two ? `, ${comparison(all(one), all(two))} on ${dayName(b?.day ?? "")}` : "";
    const cells = rows.slice(0, ROWS).map(({ name, count, other: n }) =>
      [h("a", { href: link("event", name), dir: "auto" }, name), number(count), ...(two ? [number(n), signed(count - n)] : [])]);
    const parts = a.parts.length > 1 ? [h("p", { className: "note" }, `Reset ${a.parts.slice(0, -1).map(({ until }) => moment(Date.parse(until))).join(", ")}. ` +
      a.parts.map(({ counts }, i) => `Part ${i + 1}: ${number(Object.values(counts).reduce((x, y) => x + y, 0))}`).join(", "))] : [];
    const corrections = a.corrections?.length ? [h("h3", {}, "Corrections"), h("ul", { className: "corrections" }, ...a.corrections.map(correctionRow))] : [];
    const rest = rows.length > ROWS ? [h("p", { className: "note" }, `The first ${number(ROWS)} of ${number(rows.length)}; the file has all.`)] : [];
    return [h("p", { className: "lead" }, `${plural(all(one), "hit")} of ${plural(one.size, "event")}${says}.`), ...parts, ...corrections,
      table(["Event", ...(two ? [dayOfMonth(a.day), dayOfMonth(b?.day ?? ""), "Difference"] : ["Hits"])], cells), ...rest];
  }

  byId("history-csv").addEventListener("click", async () => {
    const text = await getText(`/history/${choice.value}?format=csv`).catch((error) => { note.textContent = error.message; });
    if (text) download(`tally-${choice.value}.csv`, text);
  });
  choice.addEventListener("change", () => go(choice.value, compared));
  other.addEventListener("change", () => go(choice.value, other.value));

  return {
    title: () => (shown ? dayName(shown) : "History"),
    show({ name, query }) {
      [shown, compared] = [/^\d{4}-\d\d-\d\d$/.test(name) ? name : "", query.get("with") ?? ""];
      load();
    },
    renew: load,
  };
}
