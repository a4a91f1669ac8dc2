// The fields of a form in a dialog, each with room for an error of the server.

import { h } from "../lib/dom.js";

/** @typedef {ReturnType<typeof createField>} Field */

/** @param {string} id @param {string} label @param {string} tag @param {Record<string, any>} props @param {...Node} children */
export function createField(id, label, tag, props, ...children) {
  const input = /** @type {HTMLInputElement} */ (h(tag, { id, required: true, "aria-describedby": `${id}-problem`, ...props }, ...children));
  const problem = h("span", { id: `${id}-problem`, className: "problem", role: "alert" });
  return { input, problem, el: h("p", { className: "field" }, h("label", { htmlFor: id }, label), input, problem) };
}

/** @param {string} id @param {string} label @param {number|string} value a whole number, or "" */
export const createNumberField = (id, label, value) =>
  createField(id, label, "input", { type: "number", min: "1", max: String(Number.MAX_SAFE_INTEGER), step: "1", value: String(value) });

/** @param {Record<string, string>} labels by value */
export const options = (labels) => Object.entries(labels).map(([value, label]) => h("option", { value }, label));

/** Shows an error of the server at the field that it names, or below all of them. @param {Record<string, Field>} fields by the API's name @param {HTMLElement} below @param {string} message */
export function showProblem(fields, below, message) {
  const [, name, text] = /^(\w+): (.*)$/s.exec(message) ?? [];
  const named = Object.hasOwn(fields, name ?? "") ? fields[name] : null;
  for (const field of Object.values(fields)) {
    field.problem.textContent = field === named ? text : "";
    field.input.ariaInvalid = String(field === named);
  }
  below.textContent = named ? "" : message;
  named?.input.focus();
}
