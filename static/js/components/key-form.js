// The form for an API key: in the settings, and in place of a page that needs one.

import { apiKey, setApiKey } from "../data/prefs.js";
import { h, setText } from "../lib/dom.js";

/** @param {HTMLElement} host @param {() => void} onChange @returns {() => void} redraws the form for the current key */
export function createKeyForm(host, onChange) {
  const field = /** @type {HTMLInputElement} */ (h("input", { type: "password", autocomplete: "off", required: true }));
  const forget = h("button", { className: "button", type: "button" }, "Remove key");
  const form = h("form", { className: "key" }, h("label", {}, "API key ", field), h("button", { className: "button primary" }, "Save"), forget);
  const note = h("p", { className: "note", role: "status" });
  host.append(form, note);

  function submit(/** @type {string} */ value) {
    setApiKey(value);
    field.value = "";
    onChange();
    draw();
  }

  function draw() {
    forget.hidden = !apiKey();
    setText(note, apiKey() ? "Stored in this tab only, until you close it." : "");
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(field.value.trim());
  });
  forget.addEventListener("click", () => submit(""));
  draw();
  return draw;
}

/** Fills the panel that replaces a page while the server requires a key. @param {HTMLElement} host @param {() => void} onKey @returns {(locked: boolean) => void} shows or hides it */
export function createKeyPrompt(host, onKey) {
  const text = h("p", { role: "alert" });
  host.append(h("h2", {}, "This dashboard is protected"), text);
  const drawForm = createKeyForm(host, onKey);
  return (locked) => {
    if (locked && host.hidden) text.textContent = apiKey() ? "That key was not accepted." : "Ask the server’s operator for a read key.";
    if (locked) drawForm();
    host.hidden = !locked;
    document.body.classList.toggle("locked", locked);
  };
}
