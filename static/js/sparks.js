// @ts-check
// The last hour of the events whose cards are in sight: asked for together, then carried on by the live counts.

import { getSparks } from "./api.js";
import { Series } from "./series.js";

const RENEW_MS = 60_000; // live counts carry a line on; a reload corrects it
const ASK_MS = 1500; // between two questions, so that scrolling through thousands of cards is no flood
const AT_ONCE = 50;
const QUERY_MAX = 6000; // bytes of names in one address, well within what servers and proxies take

/** @typedef {{series: Series, asked: number, at: number}} Spark */

export class Sparks {
  /** @type {Map<string, Spark>} */ #known = new Map();
  #asked = -ASK_MS;

  /** @param {string} name */
  of(name) {
    return this.#known.get(name)?.series;
  }

  /** What was counted of it since it was last looked at. @param {string} name @param {number} count @param {number} now */
  follow(name, count, now) {
    const spark = this.#known.get(name);
    if (!spark) return;
    if (spark.at >= 0) spark.series.add(count - spark.at, now);
    spark.at = count;
  }

  /**
   * Loads what is missing or old of these, unless that was just done; true if something came.
   * @param {string[]} names @param {(name: string) => number} countOf
   */
  async load(names, countOf) {
    const now = performance.now();
    if (now - this.#asked < ASK_MS) return false;
    const old = names.filter((name) => now - (this.#known.get(name)?.asked ?? -Infinity) > RENEW_MS);
    let bytes = 0;
    const some = old.slice(0, AT_ONCE).filter((name) => (bytes += encodeURIComponent(name).length + 7) < QUERY_MAX);
    if (!some.length) return false;
    this.#asked = now;
    for (const name of some) this.#known.set(name, { ...(this.#known.get(name) ?? { series: new Series(), at: -1 }), asked: now });
    const counts = some.map(countOf);
    const found = await getSparks(some).catch(() => []);
    [found].flat().forEach(({ points }, i) => {
      const spark = /** @type {Spark} */ (this.#known.get(some[i]));
      spark.series.load(points);
      spark.at = counts[i]; // as it was when it was asked for: a hit meanwhile is seen twice rather than never, for a minute
    });
    return found.length > 0;
  }
}

/** The last hour as a floor of posts, a minute each, in a 240 x 24 drawing. @param {Series} series */
export function floorPath({ points }) {
  const most = Math.max(1, ...points.map(({ count }) => count));
  return points.map(({ count }, i) => (count ? `M${i * 4 + 2} 26V${(23 - 21 * (count / most)).toFixed(1)}` : "")).join("");
}
