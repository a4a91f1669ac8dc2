// The form for an API key: in the settings, and in place of a page that needs one.

import { problemWithKey } from "../data/api.js";
import { apiKey, isKeyRemembered, setApiKey } from "../data/prefs.js";
import { h, setText } from "../lib/dom.js";

/** @param {HTMLElement} host @param {() => void} onChange @returns {() => void} redraws the form for the current key */
export function createKeyForm(host, onChange) {
  const field = /** @type {HTMLInputElement} */ (h("input", { type: "password", autocomplete: "off", required: true }));
  const forget = h("button", { className: "button", type: "button" }, "Remove key");
  const remember = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox" }));
  const form = h("form", { className: "key" }, h("label", {}, "API key ", field), h("button", { className: "button primary" }, "Save"), forget,
    h("label", { className: "check" }, remember, " Remember on this device"));
  const note = h("p", { className: "note", role: "status" });
  host.append(form, note);

  /** @param {string} value a key that was accepted, or "" to forget it */
  function save(value) {
    setApiKey(value, { remember: Boolean(value) && remember.checked });
    field.value = "";
    onChange();
    draw();
  }

  function draw() {
    forget.hidden = !apiKey();
    if (apiKey()) setText(note, isKeyRemembered() ? "Stored in this browser." : "Stored in this tab only, until you close it.");
    else if (!field.value) setText(note, "");
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = field.value.trim();
    const problem = await problemWithKey(key); // The present key stays if this one cannot read.
    if (problem) setText(note, `This key was not accepted. ${problem}`);
    else save(key);
  });
  forget.addEventListener("click", () => save(""));
  draw();
  return draw;
}

/** Fills the panel that replaces a page while the server requires a key. @param {HTMLElement} host @param {() => void} onKey @returns {(locked: boolean) => void} shows or hides it */
export function createKeyPrompt(host, onKey) {
  const text = h("p", { role: "alert" });
  host.append(h("h2", {}, "This dashboard is protected"), text);
  const drawForm = createKeyForm(host, onKey);
  return (locked) => {
    if (locked && host.hidden) text.textContent = apiKey() ? "The key is no longer accepted." : "Ask the server’s operator for a read key.";
    if (locked) drawForm();
    host.hidden = !locked;
    document.body.classList.toggle("locked", locked);
  };
}
