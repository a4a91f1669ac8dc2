// The top of a page: one large number with its tally marks, and a list of smaller numbers.

import { eventPath, get, getFirstDay, getSeries, throttle } from "../data/api.js";
import { compareWithEarlierDays, HOURS_OF_EIGHT_DAYS } from "../data/earlier-days.js";
import { h, setText } from "../lib/dom.js";
import { comparedWithEarlierDays, number, percent } from "../lib/format.js";
import { createGoalBar } from "./goal-bar.js";
import { createTallyMarks } from "./tally-marks.js";

const AUDIENCE_MS = 15_000; // Unique users are not sent live, so the page requests them.
const COMPARISON_MS = 60_000; // It changes every hour.

/** @param {HTMLElement} value @param {HTMLElement} marksHost @param {string} name chooses the handwriting of the marks */
export function createHero(value, marksHost, name) {
  const marks = createTallyMarks(name);
  marksHost.replaceChildren(marks.el);
  /** @param {number} n @param {boolean} animate */
  function set(n, animate) {
    value.textContent = number(n);
    value.style.setProperty("--len", String(Math.max(6, value.textContent.length))); // The style sheet fits the font size to it.
    marks.set(n, animate);
  }
  return { set, flourish: marks.flourish };
}

/** @param {HTMLElement} host @param {Record<string, string>} labels of the smaller numbers, by key */
export function createHeadline(host, labels) {
  /** @type {HTMLElement} */ const value = host.querySelector(".value") ?? h("p", { className: "value", translate: false });
  const marksHost = h("div", { className: "strokes" });
  const compared = h("p", { className: "compared" });
  const goal = createGoalBar();
  const figures = h("dl", { className: "figures" });
  /** @type {Record<string, HTMLElement>} */ const values = {};
  let name = "";
  let hero = createHero(value, marksHost, name);
  host.replaceChildren(h("div", { className: "hero" }, h("p", { className: "label" }, "Hits today ", h("span", { className: "as-of" })), value, marksHost, compared, goal.el), figures);
  for (const [key, label] of Object.entries(labels)) {
    values[key] = h("dd", { className: "value", translate: false }, "–");
    figures.append(h("div", {}, h("dt", {}, label), values[key]));
  }

  /** @param {string} key @param {string} text @param {string} [title] */
  function set(key, text, title = "") {
    setText(values[key], text);
    values[key].title = title;
  }

  const loadAudience = throttle(AUDIENCE_MS, async () => {
    const requestedName = name;
    /** @type {Audience|null} */ const audience = await get(`${eventPath(requestedName)}/audience?days=1`).catch(() => null);
    if (!audience || requestedName !== name) return;
    const prefix = audience.exact ? "" : "≈ ";
    set("users", prefix + number(audience.users), prefix && `Estimated${audience.error ? `, ±${percent(audience.error)}` : ""}`);
    set("sessions", prefix + number(audience.activeSessions), "Sessions with a hit in the last 5 minutes");
  });

  const loadComparison = throttle(COMPARISON_MS, async () => {
    const requestedName = name;
    const found = await Promise.all([getSeries(name, "hour", HOURS_OF_EIGHT_DAYS), getFirstDay()]).catch(() => null);
    if (!found || requestedName !== name) return;
    const days = compareWithEarlierDays(found[0].points, found[1]);
    setText(compared, days ? comparedWithEarlierDays(days.until, days.today, days.yesterday, days.weekAgo) : "");
  });

  function reload() {
    loadAudience.now();
    loadComparison.now();
  }

  return {
    set,
    reload,
    /** Requests the numbers that are not sent live, if they may have changed. */
    load() {
      loadAudience();
      loadComparison();
    },
    count: (/** @type {number} */ n, /** @type {boolean} */ animate) => hero.set(n, animate),
    /** @param {Goal|undefined} progress @param {boolean} live whether hits have just arrived */
    goal(progress, live) { if (goal.draw(progress, live)) hero.flourish(); },
    /** @param {string} event an event name */
    show(event) {
      name = event;
      hero = createHero(value, marksHost, name);
      setText(compared, "");
      reload();
    },
  };
}
