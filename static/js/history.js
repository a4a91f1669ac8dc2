// @ts-check
// The days that are over: a bar each, what each was made of, and two of them side by side.

import { getDay, getHistory, getText } from "./api.js";
import { createChart } from "./chart.js";
import { sideBySide, sumOf } from "./days.js";
import { bdi, byId, download, h, table } from "./dom.js";
import { clock, comparison, day as dayName, moment, number, plural, signed } from "./format.js";
import { link } from "./router.js";

const ROWS = 200; // of a day that are shown at once; the file has them all
const DAYS = 90; // bars that can be told apart

/** @typedef {import("./api.js").ClosedDay} ClosedDay */
/** @typedef {import("./api.js").Correction} Correction */

/** @param {Correction} correction what was there before is struck through, as on paper */
function correctionRow({ at, action, eventName, before, after }) {
  const what = { reset: "Day reset", correct: "Corrected", delete: "Deleted" }[action] ?? action;
  const change = (/** @type {"count"|"total"} */ key) => (before && after && before[key] === after[key]) || !before ? []
    : [` ${key} `, h("del", {}, number(before[key])), ...(after ? [" ", h("ins", {}, number(after[key]))] : [])];
  return h("li", {}, h("time", { dateTime: at }, clock(Date.parse(at))), ` ${what} `, eventName === null ? "" : bdi(eventName), ...change("count"), ...change("total"));
}

/** @param {ReturnType<typeof import("./session.js").openSession>} session */
export function createHistory({ now }) {
  const [list, body, note, other] = ["history-days", "history-day", "history-note", "history-with"].map(byId);
  const chart = createChart(byId("history-chart"), { onPick: ({ iso }) => { location.hash = link("history", iso); } });
  /** @type {import("./api.js").DayRow[]} */ let days = [];
  let [shown, compared, turn] = ["", "", 0];

  async function load() {
    const error = await getHistory().then((found) => { days = found; }, (reason) => reason);
    byId("history-retry").hidden = !error;
    note.textContent = error ? `The history could not be loaded. ${error.message}` : days.length ? "" : "No day is over yet. Today will be here tomorrow.";
    byId("history-body").hidden = !days.length;
    const bars = days.slice(0, DAYS).reverse().map(({ day, hits }) => ({ start: Date.parse(day), iso: day, count: hits }));
    chart.set({ points: bars, step: "day" }, days.length ? `${plural(days.length, "day")}; choose one` : "", false);
    chart.describe();
    const most = Math.max(1, ...days.map(({ hits }) => hits));
    list.replaceChildren(...days.map(({ day, hits, parts }) => {
      const bar = h("span", { className: "share" });
      bar.style.transform = `scaleX(${(hits / most).toFixed(4)})`;
      return h("li", {}, bar, h("a", { href: link("history", day), className: "name", "data-day": day }, dayName(day)),
        h("span", { className: "part" }, parts > 1 ? `${parts} parts` : ""), h("span", { className: "count value" }, number(hits)));
    }));
  }

  async function open() {
    const mine = ++turn;
    const chosen = shown || days[0]?.day;
    byId("history-detail").hidden = !chosen;
    if (!chosen) return;
    for (const anchor of list.querySelectorAll("a")) anchor.dataset.day === chosen ? anchor.setAttribute("aria-current", "true") : anchor.removeAttribute("aria-current");
    byId("history-name").textContent = dayName(chosen);
    other.replaceChildren(h("option", { value: "" }, "no other day"),
      ...days.filter(({ day }) => day !== chosen).map(({ day }) => h("option", { value: day, selected: day === compared }, dayName(day))));
    other.value = compared;
    const found = await Promise.all([getDay(chosen), compared ? getDay(compared) : null]).catch((error) => error);
    if (mine !== turn) return;
    if (found instanceof Error) return body.replaceChildren(h("p", { className: "note" }, `This day could not be loaded. ${found.message}`));
    body.replaceChildren(...describe(found[0], found[1]));
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
      table(["Event", ...(two ? [dayName(a.day), dayName(b?.day ?? ""), "Difference"] : ["Hits"])], cells), ...rest];
  }

  byId("history-retry").addEventListener("click", () => renew());
  byId("history-csv").addEventListener("click", async () => {
    const day = shown || days[0].day;
    const text = await getText(`/history/${day}?format=csv`).catch((error) => { note.textContent = error.message; });
    if (text) download(`tally-${day}.csv`, text);
  });
  other.addEventListener("change", () => { location.hash = link("history", shown || days[0].day, { with: other.value }); });

  let loadedOn = "";
  async function renew() {
    await load();
    loadedOn = new Date(now()).toDateString();
    await open();
  }

  return {
    title: () => (shown ? dayName(shown) : "History"),
    /** @param {import("./router.js").Route} route */
    async show({ name, query }) {
      [shown, compared] = [/^\d{4}-\d\d-\d\d$/.test(name) ? name : "", query.get("with") ?? ""];
      if (!days.length || loadedOn !== new Date(now()).toDateString()) await load();
      loadedOn = new Date(now()).toDateString();
      await open();
    },
    hide() {},
    renew,
    paint() {},
    tick() {},
  };
}
