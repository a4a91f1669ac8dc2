// @ts-check
// The last 60 minutes: loaded from the server, then carried on by the live hits.

export const MINUTES = 60;
const MINUTE_MS = 60_000;

export class Series {
  /** Oldest first; the last one is the running minute. @type {{start: number, count: number}[]} */ points = [];

  /** @param {{start: string, count: number}[]} points */
  load(points) {
    this.points = points.map(({ start, count }) => ({ start: Date.parse(start), count }));
  }

  /** @param {number} hits @param {number} now */
  add(hits, now) {
    this.advance(now);
    const running = this.points.at(-1);
    // A correction downwards is not a hit.
    if (running) running.count += Math.max(0, hits);
  }

  /** Opens the minutes that have begun since; true if the window moved. @param {number} now */
  advance(now) {
    const start = this.points.at(-1)?.start ?? now;
    const begun = Math.floor((now - start) / MINUTE_MS);
    if (begun < 1) return false;
    // After a long sleep only the newest window matters.
    for (let i = Math.max(1, begun - MINUTES + 1); i <= begun; i++) this.points.push({ start: start + i * MINUTE_MS, count: 0 });
    this.points = this.points.slice(-MINUTES);
    return true;
  }

  /**
   * Hits in the last 60 s: the running minute plus the share of the one before that is
   * still inside the window. Null before anything is known. @param {number} now
   */
  perMinute(now) {
    const [before, running] = this.points.slice(-2);
    if (!running) return null;
    const inside = 1 - Math.min(1, Math.max(0, (now - running.start) / MINUTE_MS));
    return Math.round(running.count + before.count * inside);
  }
}
