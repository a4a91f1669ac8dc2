// @ts-check
// Numbers and times in the reader's own language.

const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const hm = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const hms = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Every digit: a shortened number would hide the movement. @param {number} n */
export const number = (n) => whole.format(n);
/** Short form, for axes only. @param {number} n */
export const compact = (n) => short.format(n);
/** 12:03 @param {number} ms since the epoch */
export const minute = (ms) => hm.format(ms);
/** 12:03:05 @param {number} ms since the epoch */
export const clock = (ms) => hms.format(ms);
/** @param {number} ms since the epoch */
export const moment = (ms) => dayAndTime.format(ms);
/** @param {number} n @param {string} noun */
export const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;

/** A span as 03:12:45; never negative. @param {number} ms */
export function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  return [seconds / 3600, (seconds / 60) % 60, seconds % 60].map((part) => String(Math.floor(part)).padStart(2, "0")).join(":");
}
