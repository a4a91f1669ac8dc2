// Formats numbers, dates and times in the reader's language.

const numberFormat = (/** @type {Intl.NumberFormatOptions} */ options = {}) => new Intl.NumberFormat(undefined, options).format;
const dateFormat = (/** @type {Intl.DateTimeFormatOptions} */ options) => new Intl.DateTimeFormat(undefined, options).format;
// The server names its days. Parsing and formatting them in UTC keeps the name in every time zone of a reader.
const utcMidnight = (/** @type {string} */ iso) => Date.parse(`${iso.slice(0, 10)}T00:00Z`);
const formatLongDate = dateFormat({ weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const formatMonth = dateFormat({ month: "long", year: "numeric", timeZone: "UTC" });
const formatShortMonth = dateFormat({ month: "short", timeZone: "UTC" });
const formatHour = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short", hour: "numeric", minute: "2-digit" });
const formatShortDate = dateFormat({ day: "numeric", month: "short", timeZone: "UTC" });

export const number = numberFormat(); // A shortened count would hide that it moves.
export const compact = numberFormat({ notation: "compact", maximumFractionDigits: 1 }); // For axes only.
export const percent = numberFormat({ style: "percent", maximumFractionDigits: 1 });
const wholePercent = numberFormat({ style: "percent", maximumFractionDigits: 0 });
const signedPercent = numberFormat({ style: "percent", maximumFractionDigits: 1, signDisplay: "exceptZero" });
export const signed = numberFormat({ signDisplay: "exceptZero" });
export const byteSize = numberFormat({ style: "unit", unit: "byte", notation: "compact", unitDisplay: "narrow" });
export const time = dateFormat({ hour: "numeric", minute: "2-digit" });
export const timeWithSeconds = dateFormat({ timeStyle: "medium" });
export const dateTime = dateFormat({ dateStyle: "medium", timeStyle: "short" });
/** @param {string} iso a day of the server, such as 2026-11-23 */
export const longDate = (iso) => formatLongDate(utcMidnight(iso));
/** @param {string} iso a day of the server */
export const shortDate = (iso) => formatShortDate(utcMidnight(iso));
/** @param {string} iso a day of the server */
export const month = (iso) => formatMonth(utcMidnight(iso));
/** @param {string} iso a day of the server */
export const shortMonth = (iso) => formatShortMonth(utcMidnight(iso));
/** Formats an hour of a day in the reader's time zone. @param {number} start ms */
export const hourOfDay = (start) => formatHour.formatRange(start, start + 3_600_000);
/** @param {number} n @param {string} noun */
export const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;

/** Formats a duration as 03:12:45; a negative one is 00:00:00. @param {number} ms */
export function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  return [seconds / 3600, (seconds / 60) % 60, seconds % 60].map((part) => String(Math.floor(part)).padStart(2, "0")).join(":");
}

/** Formats how much a number has changed, with its direction. @param {number} current @param {number} previous */
export const signedRatio = (current, previous) => (previous && current < 10 * previous ? signedPercent(current / previous - 1) : ratio(current, previous));

/** Compares two numbers in words, for example "12% more than". @param {number} current @param {number} previous */
export function comparison(current, previous) {
  if (current === previous) return "as many as";
  if (!previous) return `${number(current)} more than`;
  return current > 2 * previous ? `${number(Math.round((10 * current) / previous) / 10)} times as many as`
    : `${percent(Math.abs(current / previous - 1))} ${current > previous ? "more" : "fewer"} than`;
}

/** Formats how much a number has changed, without its direction, in few characters. @param {number} current @param {number} previous */
export function ratio(current, previous) {
  if (!previous) return current ? "from 0" : wholePercent(0);
  const part = Math.abs(current / previous - 1);
  return current < 10 * previous ? (part < 0.01 ? percent : wholePercent)(part) : `${compact(current / previous)}×`;
}

/**
 * Compares the hits of today in words with those of earlier days, which are null if they are unknown. Returns "" if there is nothing to say.
 * @param {string} until the end of the compared hours (ISO 8601) @param {number} today @param {number|null} yesterday @param {number|null} weekAgo
 */
export function comparedWithEarlierDays(until, today, yesterday, weekAgo) {
  if (!(today || yesterday || weekAgo)) return "";
  const parts = [
    ...(yesterday === null ? [] : [`${comparison(today, yesterday)} yesterday (${number(yesterday)})`]),
    ...(weekAgo === null ? [] : [`${comparison(today, weekAgo)} a week ago (${number(weekAgo)})`]),
  ];
  return parts.length ? `By ${time(Date.parse(until))}: ${number(today)}, ${parts.join(", ")}` : "";
}

/** Formats the end of the server's day, on both clocks if they differ. @param {string} iso with the server's UTC offset */
export function dayEnd(iso) {
  const serverTime = iso.slice(11, 16);
  const offset = /[+-]\d\d:\d\d$/.exec(iso)?.[0] ?? "";
  const end = new Date(iso);
  const readerTime = `${String(end.getHours()).padStart(2, "0")}:${String(end.getMinutes()).padStart(2, "0")}`;
  return readerTime === serverTime ? `at ${time(end)}` : `at ${serverTime} server time (UTC${offset}), ${time(end)} your time`;
}
