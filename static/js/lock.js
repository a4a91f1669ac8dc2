// @ts-check
// A page that may not read asks for a key.

import { h } from "./dom.js";
import { key, useKey } from "./prefs.js";

/** @param {HTMLElement} host @param {() => void} unlock @returns {(locked: boolean) => void} */
export function createLock(host, unlock) {
  const field = /** @type {HTMLInputElement} */ (h("input", { id: "lock-key", type: "password", autocomplete: "off", required: true }));
  const note = h("p", { className: "problem", role: "alert" });
  const form = h("form", {}, h("h2", {}, "This Tally needs a key"),
    h("p", {}, "Whoever runs it can give you one. It is kept in this tab until the tab is closed."),
    h("p", { className: "field" }, h("label", { htmlFor: field.id }, "Key"), field), note,
    h("p", { className: "buttons" }, h("button", { className: "button primary" }, "Open")));
  host.append(form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(field.value.trim());
    field.value = "";
    unlock();
  });
  return (locked) => {
    if (locked && host.hidden) note.textContent = key() ? "That key does not open it." : "";
    host.hidden = !locked;
    document.body.classList.toggle("locked", locked);
  };
}
