// What cannot be taken back is asked for by typing a name.

import { byId, h } from "../lib/dom.js";

/** @param {Question} question */
export function confirmTyped({ title, text, word, action, fields = [], run, done }) {
  const dialog = byId("confirm");
  const note = h("p", { className: "problem", role: "alert" });
  const typed = /** @type {HTMLInputElement} */ (h("input", { id: "confirm-word", autocomplete: "off", spellcheck: false }));
  const go = /** @type {HTMLButtonElement} */ (h("button", { className: "button danger", disabled: true }, action));
  const cancel = h("button", { className: "button", type: "button" }, "Cancel");
  const inputs = fields.map(({ name, value }) => /** @type {HTMLInputElement} */ (
    h("input", { id: `confirm-${name}`, name, type: "number", min: "0", max: String(Number.MAX_SAFE_INTEGER), step: "1", required: true, value: String(value) })));
  const form = h("form", { method: "dialog" },
    h("h2", { id: "confirm-title" }, title), h("p", {}, text),
    ...inputs.map((input, i) => h("p", { className: "field" }, h("label", { htmlFor: input.id }, fields[i].label), input)),
    h("p", { className: "field" }, h("label", { htmlFor: typed.id }, "Type ", h("bdi", { className: "word" }, word), " to confirm"), typed),
    note, h("p", { className: "buttons" }, cancel, go));
  dialog.replaceChildren(form);
  typed.addEventListener("input", () => { go.disabled = typed.value.normalize() !== word; });
  cancel.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    const problem = await run(Object.fromEntries(inputs.map(({ name, value }) => [name, Number(value)]))).then(() => "", ({ message }) => message);
    note.textContent = problem;
    go.disabled = false;
    if (problem) return;
    dialog.close();
    done();
  });
  dialog.showModal();
  (inputs[0] ?? typed).focus();
}
