// The hits of each event until the last full hour, compared with those of an earlier day or week until the same hour.

import { get } from "./api.js";

const HOUR_MS = 3_600_000;
const RETRY_MS = 60_000;
const EVENTS_MAX = 10_000; // The server sends no more: those that changed most.

class Movers {
  /** The largest change first. @type {Map<string, Mover>} */ byName = new Map();
  /** The end of the last full hour (ISO 8601), or "" until they are loaded. */
  until = "";
  #requestedAt = -RETRY_MS;
  #loading = Promise.resolve(false);

  /** @param {string} window */
  constructor(window) {
    this.window = window;
  }

  /** Loads them if another hour is over. Returns true if they are new. @param {number} now ms */
  load(now) {
    if (now < Date.parse(this.until) + HOUR_MS || performance.now() - this.#requestedAt < RETRY_MS) return this.#loading;
    this.#requestedAt = performance.now();
    return (this.#loading = this.#request().finally(() => { this.#loading = Promise.resolve(false); }));
  }

  async #request() {
    /** @type {{until: string, events: Mover[]}|null} */ const found = await get(`/movers?window=${this.window}&limit=${EVENTS_MAX}`).catch(() => null);
    if (!found) return false;
    this.until = found.until;
    this.byName = new Map(found.events.map((mover) => [mover.eventName, mover]));
    return true;
  }

  /** Returns by how many hits an event has changed, up or down. @param {string} name */
  changeOf(name) {
    const { count = 0, previous = 0 } = this.byName.get(name) ?? {};
    return Math.abs(count - previous);
  }
}

/** By window. All pages share them. @type {Record<string, Movers>} */
export const MOVERS = { today: new Movers("today"), "7d": new Movers("7d") };
