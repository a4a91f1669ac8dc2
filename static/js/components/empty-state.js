// Before the first event: a line to paste, a button to try, and what it is about.

import { send } from "../data/api.js";
import { byId, copies } from "../lib/dom.js";
import { createMarks } from "./tally-marks.js";

const STROKES = 8; // one whole gate and the beginning of the next

/** @param {() => void} onHit called after a test hit @returns {(show: boolean) => void} */
export function createEmpty(onHit) {
  const [panel, button, copy, note] = ["empty", "test-hit", "copy", "empty-note"].map(byId);
  const code = panel.querySelector("code");
  const marks = createMarks("tally");
  marks.el.setAttribute("viewBox", "0 0 56 29"); // only as wide as its eight strokes
  marks.set(STROKES, false);
  byId("empty-marks").append(marks.el);
  code.textContent = `curl -X POST ${location.origin}/event/hello`;

  copies(copy, code);
  button.addEventListener("click", async () => {
    button.disabled = true;
    note.textContent = await send("POST", "/event/hello").then(() => "Counted.", (error) => `That did not work. ${error.message}`);
    button.disabled = false;
    onHit();
  });

  return (show) => {
    if (panel.hidden !== show) return;
    panel.hidden = !show;
    note.textContent = "";
  };
}
