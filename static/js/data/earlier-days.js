// Compares today with yesterday and with the day a week ago, up to the same hour.

const DAY_MS = 86_400_000;

/** Hours that reach back to the start of the day a week ago, also if a clock was put forward or back. */
export const HOURS_OF_EIGHT_DAYS = 8 * 24 + 2;

/**
 * Returns the hits until the last full hour of today, and until the same hour of earlier days. Those are null for a day before the first
 * count. Returns null in the first hour of a day.
 * @param {Point[]} hours in the server's time zone, oldest first; the last one is still running @param {string} firstDay of the server's counts
 */
export function compareWithEarlierDays(hours, firstDay) {
  const until = hours.at(-1)?.start ?? "";
  const [today, hour] = [until.slice(0, 10), until.slice(11, 13)];
  if (!hour || hour === "00") return null;
  const isCounted = (/** @type {string} */ day) => day >= (firstDay || today);
  const sumOf = (/** @type {string} */ day) => hours.reduce((sum, { start, count }) =>
    sum + (start.slice(0, 10) === day && start.slice(11, 13) < hour ? count : 0), 0);
  const daysAgo = (/** @type {number} */ days) => new Date(Date.parse(`${today}T00:00Z`) - days * DAY_MS).toISOString().slice(0, 10);
  const earlier = (/** @type {number} */ days) => (isCounted(daysAgo(days)) ? sumOf(daysAgo(days)) : null);
  return { until, today: sumOf(today), yesterday: earlier(1), weekAgo: earlier(7) };
}
