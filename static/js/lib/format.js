// Numbers and times in the reader's own language.

/** @param {Intl.NumberFormatOptions} [options] */
const numbers = (options) => new Intl.NumberFormat(undefined, options).format;
/** @param {Intl.DateTimeFormatOptions} options */
const times = (options) => new Intl.DateTimeFormat(undefined, options).format;
// A day is a name that the service gave, not an instant: read and written in UTC it keeps it wherever the reader is.
const utc = (/** @type {string} */ iso) => Date.parse(`${iso.slice(0, 10)}T00:00Z`);
const longDay = times({ weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const shortDay = times({ day: "numeric", month: "short", timeZone: "UTC" });

export const number = numbers(); // every digit: a shortened number would hide the movement
export const compact = numbers({ notation: "compact", maximumFractionDigits: 1 }); // for axes only
export const percent = numbers({ style: "percent", maximumFractionDigits: 1 });
export const signed = numbers({ signDisplay: "exceptZero" });
export const minute = times({ hour: "numeric", minute: "2-digit" });
export const clock = times({ timeStyle: "medium" });
export const moment = times({ dateStyle: "medium", timeStyle: "short" });
/** @param {string} iso a day of the service, as 2026-11-23 */
export const day = (iso) => longDay(utc(iso));
/** @param {string} iso likewise */
export const dayOfMonth = (iso) => shortDay(utc(iso));
/** @param {number} n @param {string} noun */
export const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
export const size = numbers({ style: "unit", unit: "byte", notation: "compact", unitDisplay: "narrow" });

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
  const [there, offset] = [iso.slice(11, 16), /[+-]\d\d:\d\d$/.exec(iso)?.[0] ?? ""];
  const end = new Date(iso);
  const here = `${String(end.getHours()).padStart(2, "0")}:${String(end.getMinutes()).padStart(2, "0")}`;
  return here === there ? `at ${minute(end)}` : `at ${there} of the service’s clock (UTC${offset}), ${minute(end)} of yours`;
}
