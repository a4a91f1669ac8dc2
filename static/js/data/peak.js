// The busiest hour or day of a range.

import { getSeries } from "./api.js";

const HOURS_MAX = 1440; // The server sends no more points.

const sum = (/** @type {Point[]} */ points) => points.reduce((total, { count }) => total + count, 0);

/** Returns the first of the points with the highest count, or undefined if all are 0. @template {{count: number}} T @param {T[]} points @returns {T|undefined} */
export function peakOf(points) {
  const max = Math.max(0, ...points.map(({ count }) => count));
  return max ? points.find(({ count }) => count === max) : undefined;
}

/**
 * Returns the busiest hour of some days, or their busiest day if there are too many days or the server has deleted hours of them.
 * @param {string} name an event name, or "" for all events @param {Point[]} days
 * @returns {Promise<{peak: Point|undefined, step: Step}>}
 */
export async function findPeak(name, days) {
  const points = 24 * days.length + 1; // One of the days can have 25 hours.
  if (points <= HOURS_MAX && sum(days)) {
    const loaded = (await getSeries(name, "hour", points, days[days.length - 1].start.slice(0, 10))).points;
    const hours = loaded.filter(({ start }) => start.slice(0, 10) >= days[0].start.slice(0, 10));
    if (sum(hours) >= sum(days)) return { peak: peakOf(hours), step: "hour" };
  }
  return { peak: peakOf(days), step: "day" };
}
