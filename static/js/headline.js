// @ts-check
// The strip on top: hits today, hits per minute, events, and the time to the reset.

import { serverNow } from "./api.js";
import { byId } from "./dom.js";
import { countdown, moment, number } from "./format.js";
import { createMarks } from "./marks.js";
import { tween } from "./tween.js";

/** @param {import("./counters.js").Counters} counters @param {import("./series.js").Series} series */
export function createHeadline(counters, series) {
  const [hits, rate, events, reset] = ["hits-today", "hits-per-minute", "event-count", "reset-in"].map(byId);
  const marks = createMarks("hits today");
  let shown = 0;
  byId("hero-marks").append(marks.el);

  /** @param {number} total */
  function write(total) {
    shown = total;
    hits.textContent = number(total);
    // The style sheet fits the size of the headline to its number of digits.
    hits.style.setProperty("--len", String(Math.max(6, hits.textContent.length)));
  }

  /** @param {boolean} animate */
  function draw(animate) {
    tween(hits, animate ? shown : counters.total, counters.total, write);
    marks.set(counters.total, animate);
    events.textContent = number(counters.names.length);
  }

  /** What moves with the clock alone. @param {boolean} fresh false keeps the last rate */
  function tick(fresh) {
    const perMinute = series.perMinute(serverNow());
    const resetsAt = counters.resetsAt;
    if (fresh) rate.textContent = perMinute === null ? "–" : number(perMinute);
    reset.textContent = resetsAt === null ? "–" : countdown(resetsAt - serverNow());
    reset.title = resetsAt === null ? "" : `Counts start again at ${moment(resetsAt)}`;
  }

  return { draw, tick };
}
