// @ts-check
// Numbers and times in the reader's own language.

const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const share = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const signs = new Intl.NumberFormat(undefined, { signDisplay: "exceptZero" });
/** @param {Intl.DateTimeFormatOptions} options */
const time = (options) => new Intl.DateTimeFormat(undefined, options);
const hm = time({ hour: "numeric", minute: "2-digit" });
const hms = time({ timeStyle: "medium" });
const dayAndTime = time({ dateStyle: "medium", timeStyle: "short" });
// A day is a name that the service gave, not an instant: read and written in UTC it keeps it wherever the reader is.
const longDay = time({ weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const shortDay = time({ day: "numeric", month: "short", timeZone: "UTC" });

/** Every digit: a shortened number would hide the movement. @param {number} n */
export const number = (n) => whole.format(n);
/** Short form, for axes only. @param {number} n */
export const compact = (n) => short.format(n);
/** @param {number} ratio */
export const percent = (ratio) => share.format(ratio);
/** @param {number} n */
export const signed = (n) => signs.format(n);
/** 12:03 @param {number} ms since the epoch */
export const minute = (ms) => hm.format(ms);
/** 12:03:05 @param {number} ms since the epoch */
export const clock = (ms) => hms.format(ms);
/** @param {number} ms since the epoch */
export const moment = (ms) => dayAndTime.format(ms);
/** @param {string} iso a day of the service, as 2026-11-23 */
export const day = (iso) => longDay.format(Date.parse(`${iso.slice(0, 10)}T00:00Z`));
/** @param {string} iso likewise */
export const dayOfMonth = (iso) => shortDay.format(Date.parse(`${iso.slice(0, 10)}T00:00Z`));
/** @param {number} n @param {string} noun */
export const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
/** @param {number} bytes */
export const size = (bytes) => (bytes < 1e6 ? `${number(Math.ceil(bytes / 1000))} kB` : `${number(Math.round(bytes / 1e6))} MB`);

/** A span as 03:12:45; never negative. @param {number} ms */
export function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  return [seconds / 3600, (seconds / 60) % 60, seconds % 60].map((part) => String(Math.floor(part)).padStart(2, "0")).join(":");
}

/** "12 % more than": how one number stands to another, in words. @param {number} now @param {number} before */
export function comparison(now, before) {
  if (now === before) return "as many as";
  if (!before) return `${number(now)} more than`;
  return now > 2 * before ? `${number(Math.round((10 * now) / before) / 10)} times as many as`
    : `${percent(Math.abs(now / before - 1))} ${now > before ? "more" : "fewer"} than`;
}

/** When the service's day ends, on both clocks where they differ. @param {string} iso with the service's offset */
export function dayEnd(iso) {
  const ms = Date.parse(iso);
  const offset = /[+-]\d\d:\d\d$/.exec(iso)?.[0] ?? "+00:00";
  const minutes = -new Date(ms).getTimezoneOffset();
  const [hours, rest] = offset.slice(1).split(":").map(Number);
  const theirs = (offset[0] === "-" ? -1 : 1) * (hours * 60 + rest);
  return theirs === minutes ? `at ${minute(ms)}` : `at ${iso.slice(11, 16)} of the service’s clock (UTC${offset === "+00:00" ? "" : offset}), ${minute(ms)} of yours`;
}
