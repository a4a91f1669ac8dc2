// The hits of each event until the last full hour, compared with those of an earlier day or week until the same hour.

import { get } from "./api.js";

const HOUR_MS = 3_600_000;
const RETRY_MS = 60_000;
export const HITS_MIN = 10; // From 1 hit to 5 is 400%, but says little.
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

  /** Returns the same as a part of the earlier hits, or 0 if there were none. @param {string} name */
  partOf(name) {
    const { previous = 0 } = this.byName.get(name) ?? {};
    return previous && this.changeOf(name) / previous;
  }

  /** Returns the events with enough hits in either period to compare them by percent, the largest part first. */
  byPart() {
    const found = [...this.byName.values()].filter(({ count, previous }) => Math.max(count, previous) >= HITS_MIN);
    return found.sort((a, b) => this.partOf(b.eventName) - this.partOf(a.eventName));
  }
}

/** By window. All pages share them. @type {Record<string, Movers>} */
export const MOVERS = { today: new Movers("today"), "7d": new Movers("7d") };
