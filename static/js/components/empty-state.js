// The panel before the first event: a command to paste, and a button that sends a test hit.

import { send, SERVER_URL } from "../data/api.js";
import { byId, copyOnClick } from "../lib/dom.js";
import { createTallyMarks } from "./tally-marks.js";

const STROKES = 8; // One whole gate and the beginning of the next.

/** @param {() => void} onHit called after a test hit @returns {(visible: boolean) => void} shows or hides it */
export function createEmptyState(onHit) {
  const panel = byId("empty");
  const button = byId("test-hit");
  const note = byId("empty-note");
  const code = panel.querySelector("code");
  const marks = createTallyMarks("tally");
  marks.el.setAttribute("viewBox", "0 0 56 29"); // As wide as the eight strokes.
  marks.set(STROKES, false);
  byId("empty-marks").append(marks.el);
  code.textContent = `curl -X POST ${SERVER_URL}/event/hello`;

  copyOnClick(byId("copy"), code);
  button.addEventListener("click", async () => {
    button.disabled = true;
    note.textContent = await send("POST", "/event/hello").then(() => "Counted.", (error) => `Could not send the hit. ${error.message}`);
    button.disabled = false;
    onHit();
  });

  return (visible) => {
    if (panel.hidden !== visible) return;
    panel.hidden = !visible;
    note.textContent = "";
  };
}
