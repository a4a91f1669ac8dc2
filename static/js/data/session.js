// What every page of Tally runs on: the model, the socket, the service's health, and one clock for it all.

import { get, limitedFor, serverNow } from "./api.js";
import { resolve } from "./connection-status.js";
import { Counters } from "./counters.js";
import { key } from "./prefs.js";
import { openLive } from "./socket.js";

const PAINT_MS = 250; // four paints of data a second: readable, and cheap on phones
const CALM_ABOVE = 50; // events that change at once: then digits change, and nothing glides or glows
const TICK_MS = 1000; // one clock for everything that only depends on time
const HEALTH_MS = 30_000; // tells a new version, and how an outage goes on
const HEALTH_SOON_MS = 5000; // while not all is well

/** @param {Sight} page */
export function openSession({ paint, tick, onHits = () => {}, onSnapshot = () => {}, onStatus }) {
  const counters = new Counters();
  /** @type {Connection} */ let status = { name: "loading", reasons: [], asOf: Date.now(), hint: false };
  /** @type {Health|null} */ let health = null;
  let [queued, loaded, paused, updated] = [false, false, false, false];
  let [painted, healthAsked, waiting, version, limited] = [-PAINT_MS, -HEALTH_MS, 0, "", false];
  /** @type {ReturnType<typeof openLive>} */ let live;
  const synced = () => ["live", "degraded"].includes(status.name);

  function schedule() {
    if (queued || !loaded || document.hidden) return;
    queued = true;
    setTimeout(() => requestAnimationFrame(frame), Math.max(0, painted + PAINT_MS - performance.now()));
  }

  function frame() {
    queued = false;
    if (!paused) draw(); // what was under way when the reader paused waits, too
  }

  function draw() {
    painted = performance.now();
    const { dirty, remade } = counters.take();
    paint(dirty, remade, !remade && dirty.size <= CALM_ABOVE);
  }

  function report() {
    const name = resolve({ live: status.name, paused, limited: limitedFor() > 0, health });
    onStatus({ ...status, name, waiting, limitedMs: limitedFor(), updated, synced: synced(), health });
  }

  function beat() {
    live.listen();
    if (document.hidden) return;
    if (paused || limited || limitedFor()) report();
    limited = limitedFor() > 0;
    if (loaded && !paused) tick(synced());
    if (performance.now() - healthAsked > (synced() && status.name === "live" ? HEALTH_MS : HEALTH_SOON_MS)) askHealth();
  }

  async function askHealth() {
    healthAsked = performance.now();
    health = await get("/health").catch(() => null);
    version ||= health?.version ?? "";
    updated = !!health && health.version !== version;
    report();
  }

  /** Plain HTTP: quicker than the socket's handshake, and there when sockets are blocked. */
  async function load() {
    /** @type {Record<string, number>|null} */ const map = await get("/events").catch(() => null);
    if (map && !synced()) show(Object.keys(map), Object.values(map));
  }

  /** @param {string[]} names @param {number[]} counts */
  function show(names, counts) {
    counters.replace(names, counts);
    loaded = true;
    schedule();
  }

  return {
    counters,
    load,
    /** Connects, once everything that is told about it is there. */
    start() {
      live = openLive({
        key,
        onSnapshot({ names, counts, resetsAt }) {
          counters.resetsAt = resetsAt ? Date.parse(resetsAt) : null;
          show(names, counts);
          onSnapshot();
        },
        onChanges({ changes, names }) {
          waiting += paused ? changes.length : 0;
          onHits(counters.apply(changes, names));
          schedule();
        },
        onStatus(next) {
          const changed = status.name !== next.name;
          status = next;
          report();
          if (changed && next.name !== "loading") askHealth();
        },
      });
      document.addEventListener("visibilitychange", () => {
        if (document.hidden) return;
        live.retry();
        schedule();
        beat();
      });
      setInterval(beat, TICK_MS);
      load();
    },
    retry: () => live.retry(),
    now: serverNow,
    health: () => health,
    isPaused: () => paused,
    /** Everything is looked at again, also where nothing changed and while paused: a page has just opened. */
    repaint() {
      counters.renew();
      if (loaded) draw();
    },
    /** @param {boolean} still */
    pause(still) {
      [paused, waiting] = [still, 0];
      report();
      schedule();
    },
    /** Begins anew, with the key there is now. */
    reconnect() {
      live.renew();
      load();
    },
  };
}
