// On top of a page: one large number with its marks, and the smaller ones beside it.

import { get, paced, pathOf } from "../data/api.js";
import { h, say } from "../lib/dom.js";
import { number, percent } from "../lib/format.js";
import { createMarks } from "./tally-marks.js";

const PEOPLE_MS = 15_000; // unique people are counted by asking, not live

/** @param {HTMLElement} value @param {HTMLElement} sheet @param {string} name whose handwriting the marks are in */
export function createHero(value, sheet, name) {
  const marks = createMarks(name);
  sheet.replaceChildren(marks.el);
  return (/** @type {number} */ n, /** @type {boolean} */ animate) => {
    value.textContent = number(n);
    // The style sheet fits the size of the number to its digits.
    value.style.setProperty("--len", String(Math.max(6, value.textContent.length)));
    marks.set(n, animate);
  };
}

/** @param {HTMLElement} host @param {Record<string, string>} labels of the smaller numbers, by key */
export function createHeadline(host, labels) {
  const [value, sheet, list] = [["p", "value"], ["div", "strokes"], ["dl", "figures"]].map(([tag, className]) => h(tag, { className }));
  /** @type {Record<string, HTMLElement>} */ const values = {};
  let [name, hero] = ["", createHero(value, sheet, "")];
  host.append(h("div", { className: "hero" }, h("p", { className: "label" }, "Hits today ", h("span", { className: "as-of" })), value, sheet), list);
  for (const [key, label] of Object.entries(labels)) {
    values[key] = h("dd", { className: "value" }, "–");
    list.append(h("div", {}, h("dt", {}, label), values[key]));
  }

  /** @param {string} key @param {string} text @param {string} [title] */
  function set(key, text, title = "") {
    say(values[key], text);
    values[key].title = title;
  }

  const askPeople = paced(PEOPLE_MS, async () => {
    const of = name;
    /** @type {Audience|null} */ const found = await get(`${pathOf(of)}/audience?days=1`).catch(() => null);
    if (!found || of !== name) return;
    const near = found.exact ? "" : "≈ ";
    set("users", near + number(found.users), near && `An estimate${found.error ? `, give or take ${percent(found.error)}` : ""}`);
    set("sessions", near + number(found.activeSessions), "With a hit in the last 5 minutes");
  });

  return {
    set,
    askPeople,
    count: (/** @type {number} */ n, /** @type {boolean} */ animate) => hero(n, animate),
    /** Begins with an event. @param {string} of */
    show(of) {
      [name, hero] = [of, createHero(value, sheet, of)];
      askPeople.now();
    },
  };
}
