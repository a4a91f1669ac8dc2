// The dialog before an action that cannot be undone: the reader has to type a name.

import { byId, h, setText } from "../lib/dom.js";
import { number } from "../lib/format.js";

const REFRESH_MS = 500; // Numbers go on changing while the dialog is open, and the reader should see which ones are replaced.

export function confirmTyped(/** @type {Confirmation} */ { title, text, word, action, fields = [], run, onDone }) {
  const dialog = byId("confirm");
  const problem = h("p", { className: "problem", role: "alert" });
  const wordInput = /** @type {HTMLInputElement} */ (h("input", { id: "confirm-word", autocomplete: "off", spellcheck: false }));
  const submit = /** @type {HTMLButtonElement} */ (h("button", { className: "button danger", disabled: true }, action));
  const cancel = h("button", { className: "button", type: "button" }, "Cancel");
  const shown = fields.map(({ read }) => read());
  const inputs = fields.map(({ name }, i) => /** @type {HTMLInputElement} */ (
    h("input", { id: `confirm-${name}`, name, type: "number", min: "0", max: String(Number.MAX_SAFE_INTEGER), step: "1", defaultValue: String(shown[i] ?? "") })));
  const notes = fields.map(() => h("span", { className: "now value" }));
  const form = h("form", { method: "dialog" },
    h("h2", { id: "confirm-title" }, title), h("p", {}, text),
    ...inputs.map((input, i) => h("p", { className: "field" }, h("label", { htmlFor: input.id }, fields[i].label, " ", notes[i]), input)),
    h("p", { className: "field" }, h("label", { htmlFor: wordInput.id }, "Type ", h("bdi", { className: "word", translate: false }, word), " to confirm"), wordInput),
    problem, h("p", { className: "buttons" }, cancel, submit));
  dialog.replaceChildren(form);
  const edited = () => inputs.filter(({ value, defaultValue }) => value && value !== defaultValue);
  const updateSubmit = () => { submit.disabled = wordInput.value.normalize() !== word || (fields.length > 0 && !edited().length); };
  /** Returns the edited numbers, and the ones shown, which the server compares with its own. */
  const changes = () => Object.fromEntries(edited().flatMap(({ name, value }) => {
    const i = fields.findIndex((field) => field.name === name);
    return [[name, Number(value)], ...(shown[i] === null ? [] : [[fields[i].expected, shown[i]]])];
  }));
  function refresh() {
    fields.forEach(({ read }, i) => {
      shown[i] = read();
      setText(notes[i], shown[i] === null ? "" : `now ${number(shown[i])}`);
    });
  }
  refresh();
  const refreshTimer = setInterval(refresh, REFRESH_MS);
  dialog.addEventListener("close", () => clearInterval(refreshTimer), { once: true });
  form.addEventListener("input", updateSubmit);
  cancel.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    problem.textContent = await run(changes()).then(() => "", ({ message }) => message);
    updateSubmit();
    if (problem.textContent) return;
    dialog.close();
    onDone();
  });
  dialog.showModal();
  (inputs[0] ?? wordInput).focus();
}
