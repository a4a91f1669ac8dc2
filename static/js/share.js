// The page of a share: the live counts of its events, without an API key. With ?kiosk it fills a wall display.

import { createTallyMarks } from "./components/tally-marks.js";
import { byId, h, setText } from "./lib/dom.js";
import { longDate, number, timeWithSeconds } from "./lib/format.js";
import { startWallDisplay } from "./lib/wall-display.js";

const RELOAD_MS = 30_000; // Totals move with the counts; a reload corrects them, and notices a connection that is silently dead.
const RETRY_MS = 5000;
const FEW = 4; // So many events have large tiles.
const WIDTH_TO_HEIGHT = 1.8; // of a tile on a wall display

const host = byId("counts");
/** The tiles of the events, by name. @type {Map<string, ReturnType<typeof createTile>>} */ let tiles = new Map();
/** Today's counts, by event name. @type {Map<string, number>} */ const counts = new Map();
let source = /** @type {EventSource|null} */ (null);
let updates = 0; // received from the stream
let asOf = 0;

/** @param {string} name an event name @param {boolean} isTitle whether it is the title of the page, too */
function createTile(name, isTitle) {
  const digits = h("span", {});
  const value = h("p", { className: "value", translate: false }, digits, h("small", {}, " today"));
  const marks = createTallyMarks(name);
  const total = h("b", { className: "value", translate: false });
  const el = h("article", { className: "panel tile", "data-event": name },
    h("h2", { dir: "auto", translate: false, hidden: isTitle }, name), value, h("div", { className: "under" }, h("div", { className: "strokes" }, marks.el), h("p", {}, "Total ", total)));
  let beforeToday = 0;
  let drawn = false;

  function draw() {
    const count = counts.get(name) ?? 0;
    setText(digits, number(count));
    value.style.setProperty("--len", String(1 + Math.max(5, number(count).length))); // The style sheet fits the font size to it.
    marks.set(count, drawn);
    drawn = true;
    setText(total, number(beforeToday + count));
  }

  return {
    el,
    draw,
    /** @param {number} sum of the days before today */
    setBeforeToday(sum) {
      beforeToday = sum;
      draw();
    },
    /** Starts again at 0, with the same total. */
    reset() {
      beforeToday += counts.get(name) ?? 0;
      counts.set(name, 0);
      draw();
    },
  };
}

function createTiles(/** @type {SharedCounts} */ { title, events }) {
  tiles = new Map(events.map(({ eventName }) => [eventName, createTile(eventName, events.length === 1 && eventName === title)]));
  setText(byId("title"), title);
  document.title = title;
  host.dataset.size = events.length === 1 ? "one" : events.length <= FEW ? "few" : "many";
  host.replaceChildren(...[...tiles.values()].map(({ el }) => el));
  host.removeAttribute("aria-busy");
  fillScreen();
  observer.observe(/** @type {HTMLElement} */ (host.firstElementChild)); // No other tile is smaller.
}

/** Reads the counts. Does nothing if the server is not responding. */
async function load() {
  const updatesBefore = updates;
  const response = await fetch(`${location.pathname}/counts`).catch(() => null);
  if (response?.status === 404) return showRevoked();
  if (!response?.ok) return showStatus();
  /** @type {SharedCounts} */ const read = await response.json();
  if (!tiles.size) createTiles(read);
  for (const { eventName, count, total } of read.events) {
    // The stream may have sent a newer count meanwhile.
    if (updates === updatesBefore || !counts.has(eventName)) counts.set(eventName, count);
    tiles.get(eventName)?.setBeforeToday(total - count);
  }
  setText(byId("day"), `Counts of ${longDate(read.day)}, and all-time totals`);
  asOf = Date.now();
  showStatus();
}

function connect() {
  source = new EventSource(`${location.pathname}/stream`);
  source.addEventListener("update", ({ data }) => {
    const { eventName, count } = JSON.parse(data);
    updates += 1;
    counts.set(eventName, count);
    tiles.get(eventName)?.draw();
  });
  source.addEventListener("reset", () => {
    updates += 1;
    for (const tile of tiles.values()) tile.reset();
    load();
  });
  source.onopen = load;
  source.onerror = () => {
    showStatus();
    // An EventSource does not reconnect after a response that is not a stream.
    if (source?.readyState === EventSource.CLOSED) load().then(() => setTimeout(() => source && connect(), RETRY_MS * (1 + 2 * Math.random())));
  };
}

function showStatus() {
  const isLive = source?.readyState === EventSource.OPEN && Date.now() - asOf < 2 * RELOAD_MS;
  document.body.classList.toggle("stale", !isLive && tiles.size > 0);
  byId("status").dataset.state = isLive ? "live" : asOf ? "reconnecting" : "loading";
  setText(byId("status").lastElementChild, isLive ? "Live" : asOf ? `Reconnecting: as of ${timeWithSeconds(asOf)}` : "Connecting");
}

function showRevoked() {
  source?.close();
  source = null;
  clearInterval(timer);
  setText(byId("title"), "This link no longer works");
  document.title = "Tally";
  byId("status").hidden = true;
  byId("day").textContent = "";
  host.removeAttribute("aria-busy");
  host.replaceChildren(h("p", { className: "lead", role: "alert" }, "It was revoked, or a part of it is missing. Ask the person who sent it for a new one."));
}

const observer = new ResizeObserver(([{ contentRect: { width, height } }]) => {
  host.style.setProperty("--w", `${width / 100}px`);
  host.style.setProperty("--h", `${height / 100}px`);
});

/** Chooses the columns of a wall display, so that its tiles have nearly the shape of the screen. */
function fillScreen() {
  const rows = Math.ceil(tiles.size / Math.ceil(Math.sqrt((tiles.size * innerWidth) / innerHeight / WIDTH_TO_HEIGHT)));
  host.style.setProperty("--columns", String(Math.ceil(tiles.size / rows) || 1));
}

const timer = setInterval(load, RELOAD_MS);
connect();
if (new URLSearchParams(location.search).has("kiosk")) {
  document.body.classList.add("wall");
  startWallDisplay(host);
  addEventListener("resize", fillScreen);
}
