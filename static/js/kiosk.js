// The kiosk page for wall screens: one event at a time, as large as the screen, or the top events of the day.

import { createGoalBar } from "./components/goal-bar.js";
import { createHero } from "./components/headline.js";
import { createKeyPrompt } from "./components/key-form.js";
import { createRanking } from "./components/ranking.js";
import { sparklinePath } from "./components/sparklines.js";
import { eventPath, get, getSeries, throttle } from "./data/api.js";
import { isOutdated, LABELS } from "./data/connection-status.js";
import { Series } from "./data/series.js";
import { openSession } from "./data/session.js";
import { byId, h, s } from "./lib/dom.js";
import { number, timeWithSeconds } from "./lib/format.js";
import { startWallDisplay } from "./lib/wall-display.js";

const SERIES_MS = 30_000;
const RELOAD_DELAY_MS = 3000; // Gives all nodes time to start the new version.
const TOP = 7;

const query = new URLSearchParams(location.search);
const events = query.getAll("event").filter(Boolean).slice(0, 50);
const rotateSeconds = Math.min(3600, Math.max(0, Number(query.get("rotate") ?? 15) || 0));

/** @param {string} name an event name, or "" for all events */
function createSlide(name) {
  const value = h("p", { className: "value", translate: false });
  const marksHost = h("div", { className: "slide-marks" });
  const rate = h("p", { className: "rate value" });
  const sparkline = s("path", {});
  const list = h("ol", { className: "ranking", translate: false });
  const hero = createHero(value, marksHost, name || "hits today");
  const goal = createGoalBar();
  const ranking = createRanking(list);
  const series = new Series();
  const el = h("section", { className: name ? "slide" : "slide all", hidden: true, ...(name && { "data-event": name }) },
    h("h1", { dir: "auto", translate: false }, name || "Hits today"), h("div", { className: "number" }, value, rate), goal.el, marksHost, name ? "" : list,
    s("svg", { class: "sparkline", viewBox: "0 0 240 24", preserveAspectRatio: "none", "aria-hidden": "true" }, sparkline));
  const load = throttle(SERIES_MS, () => {
    getSeries(name, "minute", 60).then(({ points }) => series.load(points), () => {});
    if (name && !counters.countOf(name)) get(eventPath(name)).then(({ total }) => { isUnknown = !total; }, () => {});
  });
  let isUnknown = false; // An event that was never counted may be a mistake in the address.
  let received = 0;
  let drawn = false;

  function draw(/** @type {boolean} */ animate) {
    const count = name ? counters.countOf(name) : counters.total;
    hero.set(count, animate && drawn);
    if (goal.draw(session.goals.of(name), drawn)) hero.flourish();
    drawn = true;
    if (!name) ranking.draw(counters.top(TOP), { total: count, linked: false, animate });
  }

  function tick() {
    load();
    if (drawn && goal.draw(session.goals.of(name), true)) hero.flourish();
    series.advance(session.now());
    sparkline.setAttribute("d", sparklinePath(series));
    const perMinute = series.perMinute(session.now());
    const texts = [...(name ? ["today"] : []), ...(perMinute === null ? [] : [`${number(perMinute)} a minute`])];
    rate.textContent = isUnknown && !counters.countOf(name) ? "Not counted yet" : texts.join(", ");
  }

  /** Shows the slide. The hits that arrived while it was hidden come from the server. */
  function open() {
    drawn = false;
    received = counters.receivedOf(name);
    el.hidden = false;
    load.now();
  }

  /** Adds the hits that have just arrived, of all events. @param {number} hits */
  function countHits(hits) {
    const before = received;
    received = counters.receivedOf(name);
    series.add(name ? received - before : hits, session.now());
  }

  return { el, draw, tick, open, countHits, reload: load.now };
}

const session = openSession({
  paint(_, __, animate) {
    byId("slides").removeAttribute("aria-busy");
    slides[current].draw(animate);
  },
  onHits: (hits) => slides[current].countHits(hits),
  onSnapshot: () => slides[current].reload(),
  tick(synced) {
    if (synced) slides[current].tick();
    byId("clock").textContent = timeWithSeconds(session.now());
    if (rotateSeconds && slides.length > 1 && Date.now() - rotatedAt >= 1000 * rotateSeconds) rotate(1);
  },
  onStatus({ name, asOf, updated }) {
    const outdated = isOutdated(name);
    byId("status").dataset.state = name;
    byId("status").lastElementChild.textContent = outdated ? `${LABELS[name]}: as of ${timeWithSeconds(asOf)}` : LABELS[name];
    document.body.classList.toggle("stale", outdated);
    byId("pause").textContent = session.isPaused() ? "Resume" : "Pause";
    showKeyPrompt(name === "locked");
    if (updated && !reloadTimer) reloadTimer = setTimeout(() => location.reload(), RELOAD_DELAY_MS);
  },
});
const { counters } = session;
const showKeyPrompt = createKeyPrompt(byId("key-prompt"), session.reconnect);
const slides = (events.length ? events : [""]).map(createSlide);
let current = 0;
let rotatedAt = Date.now();
let reloadTimer = 0;
byId("slides").append(...slides.map(({ el }) => el));
new ResizeObserver(([{ contentRect: { width, height } }]) => {
  byId("slides").style.setProperty("--w", `${width / 100}px`);
  byId("slides").style.setProperty("--h", `${height / 100}px`);
}).observe(byId("slides"));

function rotate(/** @type {number} */ offset) {
  slides[current].el.hidden = true;
  current = (current + offset + slides.length) % slides.length;
  rotatedAt = Date.now();
  slides[current].open();
  byId("slide-position").replaceChildren(...(slides.length > 1 ? slides.map((_, i) => h("i", { className: i === current ? "current" : "" })) : []));
  session.repaint();
  slides[current].tick();
}

/** @type {Record<string, () => unknown>} */ const shortcuts = {
  ArrowRight: () => rotate(1), ArrowLeft: () => rotate(-1), p: () => session.setPaused(!session.isPaused()), Escape: () => location.assign("."),
  f: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
};
addEventListener("keydown", ({ key, target, ctrlKey, metaKey, altKey }) => {
  if (!ctrlKey && !metaKey && !altKey && !(/** @type {Element} */ (target).matches("input"))) shortcuts[key]?.();
});
for (const [id, key] of [["pause", "p"], ["full", "f"], ["next", "ArrowRight"]]) byId(id).addEventListener("click", shortcuts[key]);
byId("next").hidden = slides.length < 2;
startWallDisplay(byId("slides"));
session.start();
rotate(0);
