// Counts by minute, hour or day: loaded from the server, then carried on by the live hits.

const MINUTES = 60;
const MINUTE_MS = 60_000;

export class Series {
  /** Oldest first; the last one is running. @type {Bucket[]} */ points = [];
  /** Those of the period before. @type {Bucket[]} */ before = [];

  /** @param {Step} step @param {number} size */
  constructor(step = "minute", size = MINUTES) {
    this.step = step;
    this.size = size;
  }

  /** @param {{start: string, count: number}[]} points with the period before in front, or without it */
  load(points) {
    const all = points.map(({ start, count }) => ({ start: Date.parse(start), count, iso: start }));
    this.points = all.slice(-this.size);
    this.before = all.slice(0, -this.size);
  }

  /** @param {number} hits @param {number} now */
  add(hits, now) {
    this.advance(now);
    const running = this.points.at(-1);
    // A correction downwards is not a hit.
    if (running) running.count += Math.max(0, hits);
  }

  // Hours and days, whose ends only the server's calendar knows, are opened by loading.
  /** Opens the minutes that have begun since; true if the window moved. @param {number} now */
  advance(now) {
    const start = this.points.at(-1)?.start ?? now;
    const begun = Math.floor((now - start) / MINUTE_MS);
    if (begun < 1 || this.step !== "minute") return false;
    // After a long sleep only the newest window matters.
    for (let i = Math.max(1, begun - this.size + 1); i <= begun; i++) this.points.push({ start: start + i * MINUTE_MS, count: 0, iso: "" });
    if (this.before.length) this.before = [...this.before, ...this.points.slice(0, -this.size)].slice(-this.size);
    this.points = this.points.slice(-this.size);
    return true;
  }

  /** Hits in the last 60 s: the running minute, and of the one before what is still inside. Null before anything is known. @param {number} now */
  perMinute(now) {
    const [before, running] = this.points.slice(-2);
    if (!running) return null;
    const inside = 1 - Math.min(1, Math.max(0, (now - running.start) / MINUTE_MS));
    return Math.round(running.count + before.count * inside);
  }

  /** What is over of this period and of the one before, which alone can be compared: a running bucket has time left. */
  over() {
    const sum = (/** @type {Bucket[]} */ points) => points.slice(0, -1).reduce((all, { count }) => all + count, 0);
    return { now: sum(this.points), before: sum(this.before) };
  }
}

/** Round numbers from 0 to at least `max`, five steps at most. @param {number} max @returns {number[]} */
export function ticks(max) {
  const least = Math.max(max, 4) / 5;
  const unit = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  const step = [1, 2, 5, 10].map((times) => times * unit).find((round) => round >= least) ?? least;
  return Array.from({ length: Math.ceil(Math.max(max, 4) / step) + 1 }, (_, i) => i * step);
}
