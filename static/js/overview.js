// @ts-check
// The first page: the headline, one chart, the top ten, and a card for each event.

import { getSeries } from "./api.js";
import { createCards } from "./cards.js";
import { createChart } from "./chart.js";
import { csv } from "./csv.js";
import { byId, download, segments } from "./dom.js";
import { createEmpty } from "./empty.js";
import { createHeadline } from "./headline.js";
import { createRanking } from "./ranking.js";
import { Series } from "./series.js";

const SERIES_MS = 10_000; // live hits carry the chart on; a reload corrects any drift
const TOP = 10;
/** @type {Record<string, [number, string]>} */
const SPANS = { minute: [60, "Last 60 minutes"], hour: [48, "Last 48 hours"], day: [30, "Last 30 days"] };

/** @param {ReturnType<typeof import("./session.js").openSession>} session */
export function createOverview(session) {
  const { counters, now } = session;
  const minutes = new Series();
  let [series, asked, dirtyChart] = [minutes, -SERIES_MS, false];
  const chart = createChart(byId("hits-chart"));
  const cards = createCards(byId("cards"), session);
  const headline = createHeadline(session, minutes);
  const ranking = createRanking(byId("leaderboard"));
  const showEmpty = createEmpty(session.load);

  segments(byId("chart-step"), "step", { minute: "Minutes", hour: "Hours", day: "Days" }, (value) => {
    const step = /** @type {import("./series.js").Step} */ (value);
    series = step === "minute" ? minutes : new Series(step, SPANS[step][0]);
    byId("chart-title").textContent = `Hits per ${step}`;
    load(true);
  })("minute");

  async function load(at_once = false) {
    if (document.hidden || (!at_once && performance.now() - asked < SERIES_MS)) return;
    asked = performance.now();
    const [of, wanted] = [series, new Set([minutes, series])];
    const found = await Promise.all([...wanted].map((one) => getSeries("", one.step, one.size).then(({ points }) => one.load(points), (error) => error)));
    if (of !== series) return;
    const error = found.find(Boolean);
    chart.say(error && !series.points.length ? `No history to show. ${error.message}` : "");
    chart.set(series, SPANS[series.step][1]);
    chart.describe();
  }

  byId("export").addEventListener("click", () => {
    download("tally-today.csv", csv([["event", "count"], ...counters.names.map((name, i) => [name, counters.counts[i]])]));
  });
  byId("clear").addEventListener("click", () => { clearFilter(); byId("filter").focus(); });

  function clearFilter() {
    byId("filter").value = "";
    cards.layout();
  }

  return {
    title: () => "",
    show: () => { load(true); },
    hide() {},
    clearFilter,
    /** @param {number} hits */
    count(hits) {
      for (const one of new Set([minutes, series])) one.add(hits, now());
      dirtyChart = true;
    },
    renew: () => { load(true); },
    /** @param {Set<number>} dirty @param {boolean} remade @param {boolean} lively */
    paint(dirty, remade, lively) {
      const any = counters.names.length > 0;
      byId("board").hidden = !any;
      showEmpty(!any);
      cards.update(dirty, remade, lively);
      ranking.draw(counters.top(TOP), { all: counters.total, lively });
      headline.draw(lively);
    },
    /** @param {boolean} synced */
    tick(synced) {
      // Without the server an empty minute would be a guess, not a zero.
      if ((synced && series.advance(now())) || dirtyChart) chart.set(series, SPANS[series.step][1]);
      dirtyChart = false;
      headline.tick(synced);
      cards.tick();
      load();
    },
  };
}
