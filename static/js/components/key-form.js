// The one form for a key: in the settings, and in place of a page that may not read.

import { key, useKey } from "../data/prefs.js";
import { h, say } from "../lib/dom.js";

/** @param {HTMLElement} host @param {() => void} changed @returns {() => void} shows whether there is one */
export function createKeyForm(host, changed) {
  const field = /** @type {HTMLInputElement} */ (h("input", { type: "password", autocomplete: "off", required: true }));
  const forget = h("button", { className: "button", type: "button" }, "Forget");
  const form = h("form", { className: "key" }, h("label", {}, "Key ", field), h("button", { className: "button primary" }, "Use"), forget);
  const note = h("p", { className: "note", role: "status" });
  host.append(form, note);

  /** @param {string} value */
  function take(value) {
    useKey(value);
    field.value = "";
    changed();
    show();
  }

  function show() {
    forget.hidden = !key();
    say(note, key() ? "Kept in this tab until it is closed, and nowhere else." : "");
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    take(field.value.trim());
  });
  forget.addEventListener("click", () => take(""));
  show();
  return show;
}

/** @param {HTMLElement} host @param {() => void} unlock @returns {(locked: boolean) => void} */
export function createLock(host, unlock) {
  const says = h("p", { role: "alert" });
  host.append(h("h2", {}, "This Tally needs a key"), says);
  const show = createKeyForm(host, unlock);
  return (locked) => {
    if (locked && host.hidden) says.textContent = key() ? "That key does not open it." : "Whoever runs it can give you one.";
    if (locked) show();
    host.hidden = !locked;
    document.body.classList.toggle("locked", locked);
  };
}
