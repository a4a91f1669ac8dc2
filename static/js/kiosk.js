// A wall: one number at a time, as large as the screen, or the day's board; it looks after itself.

import { createHero } from "./components/headline.js";
import { createLock } from "./components/key-form.js";
import { createRanking } from "./components/ranking.js";
import { floorPath } from "./components/sparklines.js";
import { getSeries, paced } from "./data/api.js";
import { isOld, LABEL } from "./data/connection-status.js";
import { Series } from "./data/series.js";
import { openSession } from "./data/session.js";
import { byId, h, s } from "./lib/dom.js";
import { clock, number } from "./lib/format.js";

const SERIES_MS = 30_000;
const REST_MS = 3000; // after which a pointer that rests is put away
const SHIFT_MS = 600_000; // a picture that never moves burns in
const RELOAD_MS = 3000; // a new version gets this long to settle
const TOP = 7;

const asked = new URLSearchParams(location.search);
const events = asked.getAll("event").filter(Boolean).slice(0, 50);
const rotate = Math.min(3600, Math.max(0, Number(asked.get("rotate") ?? 15) || 0));

/** @param {string} name of an event, or "" for all of them */
function createSlide(name) {
  const [value, sheet, rate] = [h("p", { className: "value" }), h("div", { className: "sheet" }), h("p", { className: "rate value" })];
  const floor = s("path", {});
  const list = h("ol", { className: "ranking" });
  const hero = createHero(value, sheet, name || "hits today");
  const ranking = createRanking(list);
  const series = new Series();
  const el = h("section", { className: name ? "slide" : "slide all", hidden: true, ...(name && { "data-event": name }) },
    h("h1", { dir: "auto" }, name || "Hits today"), h("div", { className: "number" }, value, rate), sheet, name ? "" : list,
    s("svg", { class: "floor", viewBox: "0 0 240 24", preserveAspectRatio: "none", "aria-hidden": "true" }, floor));
  const load = paced(SERIES_MS, () => getSeries(name, "minute", 60).then(({ points }) => series.load(points), () => {}));
  let shown = -1;

  /** @param {boolean} animate */
  function draw(animate) {
    const n = name ? counters.of(name) : counters.total;
    hero(n, animate && shown >= 0);
    if (shown >= 0) series.add(n - shown, session.now());
    shown = n;
    if (!name) ranking.draw(counters.top(TOP), { all: n, linked: false, lively: animate });
  }

  function tick() {
    load();
    series.advance(session.now());
    floor.setAttribute("d", floorPath(series));
    const perMinute = series.perMinute(session.now());
    rate.textContent = perMinute === null ? "" : `${number(perMinute)} a minute`;
  }

  /** What was counted while another was shown is the server's to tell. */
  function open() {
    [shown, el.hidden] = [-1, false];
    load.now();
  }

  return { el, draw, tick, open };
}

const session = openSession({
  paint(_, __, lively) {
    byId("wall").removeAttribute("aria-busy");
    slides[at].draw(lively);
  },
  tick(synced) {
    if (synced) slides[at].tick();
    byId("clock").textContent = clock(session.now());
    if (rotate && slides.length > 1 && Date.now() - turned >= 1000 * rotate) turn(1);
  },
  onStatus({ name, asOf, updated }) {
    const old = isOld(name);
    byId("status").dataset.state = name;
    byId("status").lastElementChild.textContent = old ? `${LABEL[name]}: as of ${clock(asOf)}` : LABEL[name];
    document.body.classList.toggle("stale", old);
    lock(name === "locked");
    if (updated && !reloading) reloading = setTimeout(() => location.reload(), RELOAD_MS);
  },
});
const { counters } = session;
const lock = createLock(byId("lock"), session.reconnect);
const slides = (events.length ? events : [""]).map(createSlide);
let [at, turned, reloading, resting] = [0, Date.now(), 0, 0];
byId("wall").append(...slides.map(({ el }) => el));

/** @param {number} by */
function turn(by) {
  slides[at].el.hidden = true;
  at = (at + by + slides.length) % slides.length;
  turned = Date.now();
  slides[at].open();
  byId("place").replaceChildren(...(slides.length > 1 ? slides.map((_, i) => h("i", { className: i === at ? "here" : "" })) : []));
  session.repaint();
  slides[at].tick();
}

/** The screen stays on while the page is seen; a browser that does not offer that dims as it likes. */
const stayAwake = () => document.hidden || navigator.wakeLock?.request("screen").catch(() => {});

function wake() {
  document.body.classList.remove("rests");
  clearTimeout(resting);
  resting = setTimeout(() => document.body.classList.add("rests"), REST_MS);
}

/** @type {Record<string, () => unknown>} */
const keys = {
  ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), p: () => session.pause(!session.isPaused()), Escape: () => location.assign("/"),
  f: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
};
addEventListener("keydown", ({ key, target, ctrlKey, metaKey, altKey }) => {
  if (!ctrlKey && !metaKey && !altKey && !(/** @type {Element} */ (target).matches("input"))) keys[key]?.();
});
for (const [id, key] of [["pause", "p"], ["full", "f"], ["next", "ArrowRight"]]) byId(id).addEventListener("click", keys[key]);
byId("next").hidden = slides.length < 2;
addEventListener("pointermove", wake);
document.addEventListener("visibilitychange", stayAwake);
setInterval(() => byId("wall").style.setProperty("translate", `${Math.random() * 6 - 3}px ${Math.random() * 6 - 3}px`), SHIFT_MS);
stayAwake();
wake();
session.start();
turn(0);
