// @ts-check
// Boot and wiring: model, socket and views meet here.

import { getEvents, getSeries, serverNow } from "./api.js";
import { createCards } from "./cards.js";
import { createChart } from "./chart.js";
import { Counters } from "./counters.js";
import { byId } from "./dom.js";
import { createEmpty } from "./empty.js";
import { createHeadline } from "./headline.js";
import { createLeaderboard } from "./leaderboard.js";
import { openLive } from "./live.js";
import { Series } from "./series.js";
import { createStatus } from "./status.js";

const PAINT_MS = 250; // four paints of data a second: readable, and cheap on phones
const TICK_MS = 1000; // one clock for everything that only depends on time
const SERIES_MS = 10_000; // live hits carry the chart on; a reload corrects any drift

const counters = new Counters();
const series = new Series();
const cards = createCards(byId("cards"), counters);
const chart = createChart(series);
const headline = createHeadline(counters, series);
const drawLeaderboard = createLeaderboard(byId("leaderboard"), counters);
const showEmpty = createEmpty(loadEvents);
const showStatus = createStatus(() => live.retry());
let [queued, loaded, synced, chartDirty] = [false, false, false, false];
let [painted, seriesAsked] = [-PAINT_MS, -SERIES_MS];

function schedule() {
  if (queued || !loaded || document.hidden) return;
  queued = true;
  setTimeout(() => requestAnimationFrame(paint), Math.max(0, painted + PAINT_MS - performance.now()));
}

function paint() {
  [queued, painted] = [false, performance.now()];
  const { dirty, remade } = counters.take();
  byId("main").removeAttribute("aria-busy");
  byId("board").hidden = !counters.names.length;
  showEmpty(!counters.names.length);
  cards.update(dirty, remade);
  drawLeaderboard();
  headline.draw(!remade);
}

function tick() {
  if (!loaded || document.hidden) return;
  // Without the server an empty minute would be a guess, not a zero.
  if ((synced && series.advance(serverNow())) || chartDirty) chart.draw();
  chartDirty = false;
  headline.tick(synced);
  cards.resort();
  loadSeries();
}

async function loadSeries() {
  if (document.hidden || performance.now() - seriesAsked < SERIES_MS) return;
  seriesAsked = performance.now();
  const error = await getSeries().then(({ points }) => series.load(points), (reason) => reason);
  byId("chart-note").textContent = error && !series.points.length ? `No history to show. ${error.message}` : "";
  chart.draw();
  chart.describe();
  headline.tick(!error);
}

/** Plain HTTP: quicker than the socket's handshake, and there when sockets are blocked. */
async function loadEvents() {
  const map = await getEvents().catch(() => null);
  if (map && !synced) show(Object.keys(map), Object.values(map));
}

/** @param {string[]} names @param {number[]} counts */
function show(names, counts) {
  counters.replace(names, counts);
  loaded = true;
  schedule();
}

const live = openLive({
  onSnapshot({ names, counts, resetsAt }) {
    counters.resetsAt = resetsAt ? Date.parse(resetsAt) : null;
    show(names, counts);
    loadSeries();
    headline.tick(synced);
  },
  onChanges({ changes, names }) {
    series.add(counters.apply(changes, names), serverNow());
    chartDirty = true;
    schedule();
  },
  onStatus(status) {
    synced = status.name === "live" || status.name === "degraded";
    showStatus(status);
  },
});

function clearFilter() {
  byId("filter").value = "";
  cards.layout();
}

byId("clear").addEventListener("click", clearFilter);
byId("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const theme = (document.documentElement.dataset.theme ?? system) === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("tally-theme", theme); } catch { /* a blocked storage only loses the preference */ }
});
addEventListener("keydown", (event) => {
  const { key, target, ctrlKey, metaKey, altKey } = event;
  const filter = byId("filter");
  if (key === "Escape" && target === filter) return clearFilter();
  const typing = /** @type {HTMLElement} */ (target).matches("input, select, textarea");
  if (key !== "/" || typing || ctrlKey || metaKey || altKey || !filter.offsetParent) return;
  event.preventDefault();
  filter.focus();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  live.retry();
  schedule();
  tick();
});
setInterval(tick, TICK_MS);
loadEvents();
loadSeries();
