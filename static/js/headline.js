// @ts-check
// The strip on top: hits today, hits per minute, who they came from, and the time to the reset.

import { getAudience } from "./api.js";
import { byId, h } from "./dom.js";
import { countdown, dayEnd, number, percent } from "./format.js";
import { createMarks } from "./marks.js";
import { tween } from "./tween.js";

const AUDIENCE_MS = 15_000; // unique people are counted by asking, not live

/**
 * A large number that moves, with its marks.
 * @param {HTMLElement} value @param {HTMLElement} sheet @param {string} name whose handwriting
 */
export function createHero(value, sheet, name) {
  const marks = createMarks(name);
  let shown = 0;
  sheet.replaceChildren(marks.el);

  /** @param {number} n */
  function write(n) {
    shown = n;
    value.textContent = number(n);
    // The style sheet fits the size of the number to its digits.
    value.style.setProperty("--len", String(Math.max(6, value.textContent.length)));
  }

  return (/** @type {number} */ n, /** @type {boolean} */ animate) => {
    tween(value, animate ? shown : n, n, write);
    marks.set(n, animate);
  };
}

/** @param {HTMLElement} list a dl @param {Record<string, string>} labels by key */
export function createFigures(list, labels) {
  /** @type {Record<string, HTMLElement>} */ const values = {};
  for (const [key, label] of Object.entries(labels)) {
    values[key] = h("dd", { className: "value" }, "–");
    list.append(h("div", { hidden: label.startsWith("?") }, h("dt", {}, label.replace(/^\?/, "")), values[key]));
  }
  /** A figure that is there from now on; null takes it away. @param {string} key @param {string|null} text @param {string} [title] */
  return (key, text, title = "") => {
    if (values[key].textContent !== text) values[key].textContent = text;
    values[key].title = title;
    /** @type {HTMLElement} */ (values[key].parentElement).hidden = text === null;
  };
}

/** Keeps the figures on people; a server that does not count them shows none. @param {ReturnType<typeof createFigures>} set */
export function createAudience(set) {
  let [asked, of] = [-AUDIENCE_MS, ""];
  return async (/** @type {string} */ name) => {
    if (of === name && performance.now() - asked < AUDIENCE_MS) return;
    [asked, of] = [performance.now(), name];
    const found = await getAudience(name).catch((error) => (error.status === 404 ? null : undefined));
    if (of !== name || found === undefined) return;
    if (found === null) asked = Infinity;
    const near = found && !found.exact ? "≈ " : "";
    const title = near && `An estimate${found?.error ? `, give or take ${percent(found.error)}` : ""}`;
    set("users", found && near + number(found.users), title);
    set("sessions", found && number(found.activeSessions), "With a hit in the last 5 minutes");
  };
}

/** @param {ReturnType<typeof import("./session.js").openSession>} session @param {import("./series.js").Series} series */
export function createHeadline({ counters, now, health }, series) {
  const hero = createHero(byId("hits-today"), byId("hero-marks"), "hits today");
  const set = createFigures(byId("figures"), {
    rate: "Hits per minute", events: "Events", users: "?Unique users", sessions: "?Active sessions", reset: "Reset in",
  });
  const audience = createAudience(set);

  return {
    /** @param {boolean} animate */
    draw(animate) {
      hero(counters.total, animate);
      set("events", number(counters.names.length));
    },
    /** What moves with the clock alone. @param {boolean} fresh false keeps the last rate */
    tick(fresh) {
      const perMinute = series.perMinute(now());
      const resetsAt = counters.resetsAt;
      if (fresh) set("rate", perMinute === null ? "–" : number(perMinute));
      const end = health()?.resetsAt; // on the service's clock
      set("reset", resetsAt === null ? "–" : countdown(resetsAt - now()), end ? `Counts start again ${dayEnd(end)}` : "");
      if (fresh) audience("");
    },
  };
}
