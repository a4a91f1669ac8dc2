// The top of a page: one large number with its tally marks, and a list of smaller numbers.

import { eventPath, get, throttle } from "../data/api.js";
import { h, setText } from "../lib/dom.js";
import { number, percent } from "../lib/format.js";
import { createTallyMarks } from "./tally-marks.js";

const AUDIENCE_MS = 15_000; // Unique users are not sent live, so the page requests them.

/** @param {HTMLElement} value @param {HTMLElement} marksHost @param {string} name chooses the handwriting of the marks */
export function createHero(value, marksHost, name) {
  const marks = createTallyMarks(name);
  marksHost.replaceChildren(marks.el);
  return (/** @type {number} */ n, /** @type {boolean} */ animate) => {
    value.textContent = number(n);
    value.style.setProperty("--len", String(Math.max(6, value.textContent.length))); // The style sheet fits the font size to it.
    marks.set(n, animate);
  };
}

/** @param {HTMLElement} host @param {Record<string, string>} labels of the smaller numbers, by key */
export function createHeadline(host, labels) {
  const value = h("p", { className: "value", translate: false });
  const marksHost = h("div", { className: "strokes" });
  const figures = h("dl", { className: "figures" });
  /** @type {Record<string, HTMLElement>} */ const values = {};
  let name = "";
  let hero = createHero(value, marksHost, name);
  host.append(h("div", { className: "hero" }, h("p", { className: "label" }, "Hits today ", h("span", { className: "as-of" })), value, marksHost), figures);
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

  return {
    set,
    loadAudience,
    count: (/** @type {number} */ n, /** @type {boolean} */ animate) => hero(n, animate),
    /** @param {string} event an event name */
    show(event) {
      name = event;
      hero = createHero(value, marksHost, name);
      loadAudience.now();
    },
  };
}
