// The form for an API key: in the settings, and in place of a page that needs one.

import { getPermissions } from "../data/api.js";
import { apiKey, isKeyRemembered, setApiKey } from "../data/prefs.js";
import { h, setText } from "../lib/dom.js";

const listFormat = new Intl.ListFormat("en");

/** Says what a key that can read may do. @param {KeyPermissions} permissions */
const describePermissions = ({ write, admin }) => `This key can ${listFormat.format(["read", ...(write ? ["count"] : []), ...(admin ? ["administer"] : [])])}.`;

/** Says why a key is of no use here, or "". @param {KeyPermissions} permissions */
const problemOf = ({ read, write }) => (read ? "" : write ? "Wrong key: this one can count, but not read." : "Wrong key: the server does not know it.");

/** @param {HTMLElement} host @param {() => void} onChange @param {string} [label] of the field @returns {() => void} redraws the form for the current key */
export function createKeyForm(host, onChange, label = "API key") {
  // Password managers save a password under a user name.
  const user = h("input", { type: "text", name: "username", autocomplete: "username", value: "tally", hidden: true });
  const field = /** @type {HTMLInputElement} */ (h("input", { type: "password", name: "password", autocomplete: "current-password", required: true }));
  const forget = h("button", { className: "button", type: "button" }, "Remove key");
  const remember = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox" }));
  const form = h("form", { className: "key" }, user, h("label", {}, `${label} `, field), h("button", { className: "button primary" }, "Save"), forget,
    h("label", { className: "check" }, remember, " Remember on this device"));
  const note = h("p", { className: "note", role: "status" });
  const problem = h("p", { className: "problem", role: "alert" });
  let describedKey = "";
  let description = "";
  let keyProblem = "";
  host.append(form, problem, note);

  /** @param {string} text or "" */
  function showProblem(text) {
    setText(problem, text);
    field.ariaInvalid = String(Boolean(text));
  }

  /** @param {string} value a key that was accepted, or "" to forget it */
  function save(value) {
    setApiKey(value, { remember: Boolean(value) && remember.checked });
    field.value = "";
    onChange();
    draw();
  }

  function draw() {
    forget.hidden = !apiKey();
    const stored = isKeyRemembered() ? "Stored in this browser." : "Stored in this tab only, until you close it.";
    setText(note, apiKey() && `${description} ${stored}`.trim());
    if (!field.value) showProblem(keyProblem); // A problem stays next to its key.
    if (apiKey() !== describedKey) describeKey();
  }

  async function describeKey() {
    const key = describedKey = apiKey();
    description = keyProblem = "";
    const permissions = key ? await getPermissions(key).catch(() => null) : null;
    if (key !== describedKey || !permissions) return;
    keyProblem = problemOf(permissions);
    if (!keyProblem) description = describePermissions(permissions);
    draw();
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = field.value.trim();
    /** @type {KeyPermissions|Error} */ const permissions = await getPermissions(key).catch((error) => error);
    // The present key stays if this one cannot read.
    if (permissions instanceof Error) showProblem(permissions.message);
    else if (permissions.read) save(key);
    else showProblem(problemOf(permissions));
  });
  forget.addEventListener("click", () => save(""));
  draw();
  return draw;
}

/** Fills the panel that replaces a page while the server requires a key. @param {HTMLElement} host @param {() => void} onKey @returns {(locked: boolean) => void} shows or hides it */
export function createKeyPrompt(host, onKey) {
  const text = h("p", { role: "alert" });
  host.append(h("h1", {}, "This dashboard is protected"), text);
  const drawForm = createKeyForm(host, onKey);
  return (locked) => {
    const opens = locked && host.hidden;
    if (opens) text.textContent = apiKey() ? "The key is no longer accepted." : "Ask the server’s operator for a read key.";
    if (locked) drawForm();
    host.hidden = !locked;
    document.body.classList.toggle("locked", locked);
    if (opens) /** @type {HTMLElement} */ (host.querySelector("input[type=password]")).focus();
  };
}
