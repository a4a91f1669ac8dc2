// The dialog before an action that cannot be undone: the reader has to type a name.

import { byId, h } from "../lib/dom.js";

export function confirmTyped(/** @type {Confirmation} */ { title, text, word, action, fields = [], run, onDone }) {
  const dialog = byId("confirm");
  const problem = h("p", { className: "problem", role: "alert" });
  const wordInput = /** @type {HTMLInputElement} */ (h("input", { id: "confirm-word", autocomplete: "off", spellcheck: false }));
  const submit = /** @type {HTMLButtonElement} */ (h("button", { className: "button danger", disabled: true }, action));
  const cancel = h("button", { className: "button", type: "button" }, "Cancel");
  const inputs = fields.map(({ name, value }) => /** @type {HTMLInputElement} */ (
    h("input", { id: `confirm-${name}`, name, type: "number", min: "0", max: String(Number.MAX_SAFE_INTEGER), step: "1", required: true, value: String(value) })));
  const form = h("form", { method: "dialog" },
    h("h2", { id: "confirm-title" }, title), h("p", {}, text),
    ...inputs.map((input, i) => h("p", { className: "field" }, h("label", { htmlFor: input.id }, fields[i].label), input)),
    h("p", { className: "field" }, h("label", { htmlFor: wordInput.id }, "Type ", h("bdi", { className: "word" }, word), " to confirm"), wordInput),
    problem, h("p", { className: "buttons" }, cancel, submit));
  dialog.replaceChildren(form);
  wordInput.addEventListener("input", () => { submit.disabled = wordInput.value.normalize() !== word; });
  cancel.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    const values = Object.fromEntries(inputs.map(({ name, value }) => [name, Number(value)]));
    problem.textContent = await run(values).then(() => "", ({ message }) => message);
    submit.disabled = false;
    if (problem.textContent) return;
    dialog.close();
    onDone();
  });
  dialog.showModal();
  (inputs[0] ?? wordInput).focus();
}
