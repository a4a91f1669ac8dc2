// Counts by minute, hour, day or month: loaded from the server, then continued with live hits.

const MINUTE_MS = 60_000;

export class Series {
  /** Oldest first; the last one is still running. @type {Bucket[]} */ points = [];
  /** The buckets of the previous period. @type {Bucket[]} */ previous = [];

  /** @param {Step} step @param {number} size buckets in a period */
  constructor(step = "minute", size = 60) {
    this.step = step;
    this.size = size;
  }

  /** @param {{start: string, count: number}[]} points may begin with the previous period @param {string} [firstDay] of the server's counts, or "" for today */
  load(points, firstDay = "") {
    const first = firstDay || points.at(-1)?.start.slice(0, 10) || "";
    const precision = this.step === "month" ? 7 : first.length; // A month that has begun before the first count is known in part.
    const all = points.map(({ start, count }) => ({ start: Date.parse(start), count, iso: start, known: start.slice(0, precision) >= first.slice(0, precision) }));
    const previous = all.slice(0, -this.size);
    this.points = all.slice(-this.size);
    this.previous = previous.every(({ known }) => known) ? previous : [];
  }

  /** Adds hits to the running bucket. @param {number} hits @param {number} now ms */
  add(hits, now) {
    this.advance(now);
    const running = this.points.at(-1);
    if (running) running.count += hits;
  }

  // Only the server's calendar knows where hours and days end, so `load` opens those.
  /** Opens the minutes that have begun since the last one; returns true if the window moved. @param {number} now ms */
  advance(now) {
    const start = this.points.at(-1)?.start ?? now;
    const begun = Math.floor((now - start) / MINUTE_MS);
    if (begun < 1 || this.step !== "minute") return false;
    // After a long sleep only the newest window matters.
    for (let i = Math.max(1, begun - this.size + 1); i <= begun; i++) this.points.push({ start: start + i * MINUTE_MS, count: 0, iso: "", known: true });
    if (this.previous.length) this.previous = [...this.previous, ...this.points.slice(0, -this.size)].slice(-this.size);
    this.points = this.points.slice(-this.size);
    return true;
  }

  /** Estimates the hits of the last 60 s: the running minute and a share of the one before. Null before anything is loaded. @param {number} now ms */
  perMinute(now) {
    const [last, running] = this.points.slice(-2);
    if (!running) return null;
    const share = 1 - Math.min(1, Math.max(0, (now - running.start) / MINUTE_MS));
    return Math.round(running.count + last.count * share);
  }

  /** Adds up all buckets, and those of both periods without a running one, which would distort a comparison. @param {boolean} [running] */
  totals(running = true) {
    const end = running ? -1 : undefined;
    const sum = (/** @type {Bucket[]} */ points) => points.reduce((total, { count }) => total + count, 0);
    return { all: sum(this.points), completed: sum(this.points.slice(0, end)), previous: sum(this.previous.slice(0, end)) };
  }
}

/** Returns round numbers from 0 to at least `max`, in at most five steps. @param {number} max @returns {number[]} */
export function axisTicks(max) {
  const minStep = Math.max(max, 4) / 5;
  const unit = 10 ** Math.floor(Math.log10(Math.max(minStep, 1)));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((round) => round >= minStep) ?? minStep;
  return Array.from({ length: Math.ceil(Math.max(max, 4) / step) + 1 }, (_, i) => i * step);
}
