// The few DOM helpers everything else uses. Text only ever goes in as text.

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** What is announced or drawn only when it changes. @param {HTMLElement} el @param {string} text */
export const say = (el, text) => { if (el.textContent !== text) el.textContent = text; };

/** HTML: properties where the element has them, or else attributes. @param {string} tag @param {Record<string, any>} [props] @param {...(Node|string)} children */
export function h(tag, props = {}, ...children) {
  const el = /** @type {any} */ (document.createElement(tag));
  for (const [key, value] of Object.entries(props)) key in el ? (el[key] = value) : el.setAttribute(key, value);
  el.append(...children);
  return /** @type {HTMLElement} */ (el);
}

/** SVG. @param {string} tag @param {Record<string, string|number>} attrs @param {...(Node|string)} children @returns {any} */
export function s(tag, attrs, ...children) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attrs)) el.setAttribute(key, String(value));
  el.append(...children);
  return el;
}

const COPIED_MS = 2000; // long enough to be read

/** A button that copies what an element says. @param {HTMLElement} button @param {HTMLElement} source */
export function copies(button, source) {
  button.addEventListener("click", async () => {
    // The clipboard needs a secure context; without one the line is selected for Ctrl+C.
    const copied = await navigator.clipboard?.writeText(source.textContent ?? "").then(() => true, () => false);
    if (!copied) getSelection()?.selectAllChildren(source);
    const before = button.textContent;
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = before; }, COPIED_MS);
  });
}

/** Hands the reader a file. @param {string} name @param {string} text */
export function download(name, text) {
  const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  h("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // the browser reads it some time after the click
}

/**
 * A radio group that looks like one control with several parts.
 * @param {HTMLElement} el a fieldset @param {string} name @param {Record<string, string>} labels by value @param {(value: string) => void} onChange
 */
export function segments(el, name, labels, onChange) {
  const inputs = Object.keys(labels).map((value) => /** @type {HTMLInputElement} */ (h("input", { type: "radio", name, value })));
  el.append(...inputs.map((input) => h("label", {}, input, h("span", {}, labels[input.value]))));
  el.addEventListener("change", (event) => onChange(/** @type {HTMLInputElement} */ (event.target).value));
  return (/** @type {string} */ value) => { for (const input of inputs) input.checked = input.value === value; };
}

/** @param {string[]} head @param {(Node|string)[][]} rows the first cell of each names it */
export function table(head, rows) {
  const th = (/** @type {string} */ scope, /** @type {Node|string} */ text) => h("th", { scope }, text);
  const body = rows.map(([first, ...cells]) => h("tr", {}, th("row", first), ...cells.map((cell) => h("td", {}, cell))));
  return h("table", {}, h("thead", {}, h("tr", {}, ...head.map((text) => th("col", text)))), h("tbody", {}, ...body));
}

/** Text from outside in a direction of its own. @param {string} text */
export const bdi = (text) => h("bdi", { dir: "auto" }, text);
