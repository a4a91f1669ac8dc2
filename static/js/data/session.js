// The shared base of all pages: counts, socket, health, one clock, pausing, and at most four paints a second.

import { get, rateLimitedForMs, serverNow, throttle } from "./api.js";
import { currentStatus } from "./connection-status.js";
import { Counters } from "./counters.js";
import { Goals } from "./goals.js";
import { apiKey } from "./prefs.js";
import { openSocket } from "./socket.js";

const PAINT_MS = 250; // Four paints a second are readable, and cheap on phones.
const ANIMATE_MAX = 50; // When more events change at once, digits change without animation.
const TICK_MS = 1000; // One clock drives everything that depends on time.
const HEALTH_MS = 30_000;
const GOALS_MS = 30_000;
const HEALTH_TROUBLE_MS = 5000; // While something is wrong, its end should show soon.

/** What has arrived while the page was paused: the last snapshot, and the changes after it. @returns {Held} */
const nothing = () => ({ snapshot: null, names: [], changes: new Map() });

export function openSession(/** @type {SessionCallbacks} */ { paint, tick, onHits = () => {}, onSnapshot = () => {}, onGoal = () => {}, onStatus }) {
  const counters = new Counters();
  const goals = new Goals(counters, onGoal);
  /** @type {Connection} */ let connection = { name: "loading", reasons: [], asOf: Date.now(), hint: false };
  /** @type {Health|null} */ let health = null;
  /** @type {ReturnType<typeof openSocket>} */ let socket;
  let paintQueued = false;
  let loaded = false;
  let paused = false;
  let held = nothing();
  let wasLimited = false;
  let paintedAt = -PAINT_MS;
  let healthRequestedAt = -HEALTH_MS;
  let waiting = 0;
  let version = "";
  const updated = () => !!health && health.version !== version;
  const synced = () => ["live", "degraded"].includes(connection.name);

  function schedulePaint() {
    if (paintQueued || !loaded || document.hidden) return;
    paintQueued = true;
    setTimeout(() => requestAnimationFrame(paintNow), Math.max(0, paintedAt + PAINT_MS - performance.now()));
  }

  function paintNow() {
    paintQueued = false;
    paintedAt = performance.now();
    const { dirty, full } = counters.drain();
    paint(dirty, full, !full && dirty.size <= ANIMATE_MAX);
  }

  function report() {
    const limitedMs = rateLimitedForMs();
    const name = currentStatus({ connection: connection.name, paused, limited: limitedMs > 0, health });
    onStatus({ ...connection, name, waiting, limitedMs, updated: updated(), synced: synced(), health });
  }

  function onTick() {
    socket.checkSilence();
    if (document.hidden) return;
    const limited = rateLimitedForMs() > 0;
    if (paused || wasLimited || limited) report();
    wasLimited = limited;
    if (loaded && !paused) {
      if (paintQueued) paintNow(); // A snapshot may have renumbered the events, which `tick` reads by index.
      tick(synced());
    }
    if (connection.name === "live" && !paused) loadGoals();
    if (performance.now() - healthRequestedAt > (connection.name === "live" ? HEALTH_MS : HEALTH_TROUBLE_MS)) loadHealth();
  }

  async function loadHealth() {
    healthRequestedAt = performance.now();
    health = await get("/health").catch(() => null);
    version ||= health?.version ?? "";
    report();
  }

  // The last goals stay if they cannot be loaded.
  const loadGoals = throttle(GOALS_MS, () => get("/goals").then((rows) => goals.load(rows), () => {}));

  /** Loads the counts over HTTP, which is faster than the socket's handshake and works where sockets are blocked. */
  async function load() {
    /** @type {Record<string, number>|null} */ const counts = await (window.firstCounts ?? get("/events").catch(() => null));
    window.firstCounts = undefined;
    if (counts && !synced() && !paused) replaceCounts(Object.keys(counts), Object.values(counts));
  }

  /** @param {string[]} names @param {number[]} counts */
  function replaceCounts(names, counts) {
    counters.replace(names, counts);
    loaded = true;
    goals.updateAll();
    schedulePaint();
  }

  /** @param {Snapshot} snapshot */
  function takeSnapshot({ names, counts, resetsAt, day }) {
    counters.day = day;
    counters.resetsAt = resetsAt ? Date.parse(resetsAt) : null;
    replaceCounts(names, counts);
    loadGoals.now();
    onSnapshot();
  }

  /** @param {[number, number][]} changes @param {string[]} names */
  function takeChanges(changes, names) {
    onHits(counters.apply(changes, names));
    for (const [index, count] of changes) goals.update(counters.names[index], count);
    schedulePaint();
  }

  /** @param {[number, number][]} changes @param {string[]} names */
  function holdChanges(changes, names) {
    waiting += changes.length;
    held.names.push(...names);
    for (const [index, count] of changes) held.changes.set(index, count);
  }

  function takeHeld() {
    const { snapshot, names, changes } = held;
    held = nothing();
    if (snapshot) takeSnapshot(snapshot);
    takeChanges([...changes], names);
    if (changes.size && !snapshot) onSnapshot(); // The charts add hits to the current minute, but these may be older.
  }

  function setPaused(/** @type {boolean} */ pause) {
    if (paused && !pause) takeHeld();
    paused = pause;
    waiting = 0;
    report();
  }

  return {
    counters,
    goals,
    load,
    loadGoals: loadGoals.now,
    /** Connects. Call it once the pages are ready for the callbacks. */
    start() {
      socket = openSocket({
        apiKey,
        onSnapshot(snapshot) {
          if (paused) held = { ...nothing(), snapshot };
          else takeSnapshot(snapshot);
        },
        onChanges: ({ changes, names }) => (paused ? holdChanges : takeChanges)(changes, names),
        onStatus(next) {
          const changed = connection.name !== next.name;
          connection = next;
          report();
          if (changed && next.name !== "loading") loadHealth();
        },
      });
      document.addEventListener("visibilitychange", () => {
        if (document.hidden) return;
        socket.retry();
        schedulePaint();
        onTick();
      });
      setInterval(onTick, TICK_MS);
      load();
    },
    retry: () => socket.retry(),
    now: serverNow,
    health: () => health,
    /** Whether the counts are those of the server. Before that, all of them are 0. */
    isLoaded: () => loaded,
    isPaused: () => paused,
    /** Paints everything at once, because a page has just opened. */
    repaint() {
      counters.markAllDirty();
      if (loaded) paintNow();
    },
    /** While paused, nothing changes the counts. */
    setPaused,
    /** Reconnects with the current API key and loads the counts again, even while paused, because the reader has just changed something. */
    reconnect() {
      setPaused(false);
      socket.reconnect();
      load();
    },
  };
}
