// @ts-check
// Before the first event: a line to paste, a button to try, and marks being drawn.

import { postHit } from "./api.js";
import { byId, copies, reducedMotion } from "./dom.js";
import { createMarks } from "./marks.js";

const STROKE_MS = 260; // about the pace of a hand
const STROKES = 8; // one whole gate and the beginning of the next

/** @param {() => void} onHit called after a test hit @returns {(show: boolean) => void} */
export function createEmpty(onHit) {
  const [panel, button, copy, note] = ["empty", "test-hit", "copy", "empty-note"].map(byId);
  const code = panel.querySelector("code");
  const marks = createMarks("tally");
  let drawing = 0;
  marks.el.setAttribute("viewBox", "0 0 56 29"); // only as wide as its eight strokes
  byId("empty-marks").append(marks.el);
  code.textContent = `curl -X POST ${location.origin}/event/hello`;

  /** @param {number} stroke */
  function drawTo(stroke) {
    marks.set(stroke);
    if (stroke < STROKES) drawing = setTimeout(() => drawTo(stroke + 1), STROKE_MS);
  }

  copies(copy, code);
  button.addEventListener("click", async () => {
    button.disabled = true;
    note.textContent = await postHit("hello").then(() => "Counted.", (error) => `That did not work. ${error.message}`);
    button.disabled = false;
    onHit();
  });

  return (show) => {
    if (panel.hidden !== show) return;
    panel.hidden = !show;
    note.textContent = "";
    clearTimeout(drawing);
    if (show) drawTo(reducedMotion.matches ? STROKES : 0);
  };
}
