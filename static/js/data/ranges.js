// The ranges of a chart: those until now, and the days or the hour that an address names.

const DAY_MS = 86_400_000;
const DAYS_IN_HOURS = 2; // So many days are shown by hours, more by days.
const DAYS_IN_DAYS = 100; // More bars would be too narrow to distinguish, so more days are shown by months.
export const DAYS_MAX = 1440; // The server sends no more points.
const MONTHS = 12;
const MONTHS_DAYS = 366;

/** @type {Record<string, ChartRange>} */ const RECENT = {
  hour: { label: "Hour", words: "60 minutes", step: "minute", size: 60, points: 120 },
  day: { label: "Day", words: "24 hours", step: "hour", size: 24, points: 48 },
  week: { label: "Week", words: "7 days", step: "day", size: 7, points: 14 },
  month: { label: "Month", words: "30 days", step: "day", size: 30, points: 60 },
  quarter: { label: "90 days", words: "90 days", step: "day", size: 90, points: 180 },
  year: { label: "Year", words: "12 months", step: "month", size: MONTHS, points: MONTHS_DAYS },
};
/** By the value of the address. */
export const RANGE_LABELS = { ...Object.fromEntries(Object.entries(RECENT).map(([value, { label }]) => [value, label])), custom: "Dates" };

const timeOf = (/** @type {string} */ day) => Date.parse(`${day}T00:00Z`);
export const dayOf = (/** @type {number} */ ms) => new Date(ms).toISOString().slice(0, 10);

/** Returns the value of the address for some days. @param {string} from ISO 8601 @param {string} [to] */
export const daysRange = (from, to = from) => (from === to ? from : `${from}..${to}`);

/** Returns the last day of a month. @param {string} iso its first day */
export const endOfMonth = (iso) => dayOf(Date.UTC(Number(iso.slice(0, 4)), Number(iso.slice(5, 7)), 0));

/** Parses the value of the address. An unknown one is an hour. @param {string} value @returns {ChartRange} */
export function parseRange(value) {
  if (Object.hasOwn(RECENT, value)) return RECENT[value];
  const [, from, to = from] = /^(\d{4}-\d\d-\d\d)(?:\.\.(\d{4}-\d\d-\d\d))?$/.exec(value) ?? [];
  const days = Math.round((timeOf(to) - timeOf(from)) / DAY_MS) + 1;
  if (days >= 1 && days <= DAYS_MAX && [from, to].every((day) => dayOf(timeOf(day)) === day)) return rangeOfDays(from, to, days);
  const start = /^\d{4}-\d\d-\d\dT/.test(value) ? Date.parse(value) : NaN;
  return Number.isNaN(start) ? RECENT.hour : { words: "", step: "minute", size: 60, points: 60, until: new Date(start + 59 * 60_000).toISOString(), hour: start };
}

/** @param {string} from @param {string} to @param {number} days @returns {ChartRange} */
function rangeOfDays(from, to, days) {
  const common = { words: "", from, to, until: to, size: days };
  if (days <= DAYS_IN_HOURS) return { ...common, step: "hour", points: 2 * (24 * days + 1) };
  if (days <= DAYS_IN_DAYS) return { ...common, step: "day", points: 2 * days };
  return { ...common, step: "month", points: days };
}

/**
 * Returns the points of a range, after those of the period before. Days become months where the range has months.
 * @param {Point[]} points of the server @param {ChartRange} range @returns {{points: Point[], size: number}}
 */
export function pointsOf(points, { step, size, from = "", to = "", hour }) {
  if (hour) return { points: points.filter(({ start }) => Date.parse(start) >= hour), size };
  if (!from) return step === "month" ? { points: byMonth(points).slice(-size), size } : { points, size };
  const inside = points.filter(({ start }) => start.slice(0, 10) >= from && start.slice(0, 10) <= to);
  if (step === "month") return { points: byMonth(inside), size: MONTHS_DAYS };
  const firstBefore = dayOf(timeOf(from) - size * DAY_MS);
  const before = points.filter(({ start }) => start.slice(0, 10) >= firstBefore && start.slice(0, 10) < from).slice(0, inside.length);
  return { points: [...(before.length === inside.length ? before : []), ...inside], size: inside.length };
}

/** @param {Point[]} days @returns {Point[]} */
function byMonth(days) {
  /** @type {Map<string, Point>} */ const months = new Map();
  for (const { start, count } of days) {
    const month = months.get(start.slice(0, 7)) ?? { start, count: 0 };
    months.set(start.slice(0, 7), { ...month, count: month.count + count });
  }
  return [...months.values()];
}
