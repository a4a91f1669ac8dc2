// The first five minutes: what Tally is, code to count the reader's own event, and a button that sends a hit.

import { eventPath, send } from "../data/api.js";
import { ciStep, curlHit, python, webPage } from "../data/snippets.js";
import { byId, createSegmentedControl } from "../lib/dom.js";
import { createCodeBlock } from "./code-block.js";
import { createTallyMarks } from "./tally-marks.js";

const STROKES = 8; // One whole gate and the beginning of the next.
/** @type {Record<string, [string, (name: string, keyed: boolean) => string]>} */ const WAYS = {
  curl: ["curl", curlHit], page: ["Web page", webPage], python: ["Python", python], ci: ["CI", ciStep],
};

/** @param {Session} session @returns {(visible: boolean) => void} shows or hides it */
export function createEmptyState({ health, load }) {
  const panel = byId("empty");
  const input = /** @type {HTMLInputElement} */ (byId("first-name"));
  const button = byId("test-hit");
  const note = byId("empty-note");
  const marks = createTallyMarks("tally");
  const block = createCodeBlock("code");
  let way = "curl";
  marks.el.setAttribute("viewBox", "0 0 56 29"); // As wide as the eight strokes.
  marks.set(STROKES, false);
  byId("empty-marks").append(marks.el);
  const selectWay = createSegmentedControl(byId("ways"), "way", Object.fromEntries(Object.entries(WAYS).map(([key, [label]]) => [key, label])), (chosen) => {
    way = chosen;
    draw();
  });
  byId("way-note").before(block.el);
  selectWay(way);

  const name = () => input.value.trim().normalize();

  function draw() {
    const open = health()?.open ?? ["count", "scripts"];
    const valid = input.checkValidity() && name() !== "";
    button.disabled = !valid;
    byId("way-note").textContent = !valid ? "A name has 1 to 128 characters, and no /."
      : way !== "page" ? ""
      : !open.includes("count") ? "Pages cannot count while TALLY_WRITE_KEYS is set: a key on a page is no secret."
      : !open.includes("scripts") ? "For pages elsewhere, set TALLY_ALLOWED_ORIGINS=https://your.site and restart Tally." : "";
    if (valid) block.show(WAYS[way][1](name(), !open.includes("count")));
  }

  input.addEventListener("input", draw);
  byId("first-form").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    button.disabled = true;
    note.textContent = await send("POST", eventPath(name())).then(() => "Counted.", (error) => `Could not send the hit. ${error.message}`);
    button.disabled = false;
    load();
  });

  return (visible) => {
    if (visible) draw();
    if (panel.hidden !== visible) return;
    panel.hidden = !visible;
    note.textContent = "";
  };
}
