// DOM helpers for all components. They insert text as text, never as HTML.

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** Sets the text only if it changed, so a live region is not announced again. @param {HTMLElement} el @param {string} text */
export const setText = (el, text) => { if (el.textContent !== text) el.textContent = text; };

/** Creates an HTML element; a prop that is not a property of it becomes an attribute. @param {string} tag @param {Record<string, any>} [props] @param {...(Node|string)} children */
export function h(tag, props = {}, ...children) {
  const el = /** @type {any} */ (document.createElement(tag));
  for (const [key, value] of Object.entries(props)) key in el ? (el[key] = value) : el.setAttribute(key, value);
  el.append(...children);
  return /** @type {HTMLElement} */ (el);
}

/** Creates an SVG element. @param {string} tag @param {Record<string, string|number>} attrs @param {...(Node|string)} children @returns {any} */
export function s(tag, attrs, ...children) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attrs)) el.setAttribute(key, String(value));
  el.append(...children);
  return el;
}

const COPIED_MS = 2000;

/** Makes a button copy the text of an element. @param {HTMLElement} button @param {HTMLElement} source */
export function copyOnClick(button, source) {
  button.addEventListener("click", async () => {
    // The clipboard needs a secure context; without one, select the text for Ctrl+C.
    const copied = await navigator.clipboard?.writeText(source.textContent ?? "").then(() => true, () => false);
    if (!copied) getSelection()?.selectAllChildren(source);
    const label = button.textContent;
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = label; }, COPIED_MS);
  });
}

/** Saves a CSV file. @param {string} name @param {string} text */
export function download(name, text) {
  const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  h("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // The browser reads the file some time after the click.
}

/** Fills a fieldset with radio buttons that look like one control. Returns a function that selects one. @param {HTMLElement} el @param {string} name @param {Record<string, string>} labels by value @param {(value: string) => void} onChange */
export function createSegmentedControl(el, name, labels, onChange) {
  const inputs = Object.keys(labels).map((value) => /** @type {HTMLInputElement} */ (h("input", { type: "radio", name, value })));
  el.append(...inputs.map((input) => h("label", {}, input, h("span", {}, labels[input.value]))));
  el.addEventListener("change", (event) => onChange(/** @type {HTMLInputElement} */ (event.target).value));
  return (/** @type {string} */ value) => { for (const input of inputs) input.checked = input.value === value; };
}

/** @param {(Node|string)[]} head @param {(Node|string)[][]} rows the first cell of a row becomes its header */
export function table(head, rows) {
  const th = (/** @type {string} */ scope, /** @type {Node|string} */ text) => h("th", { scope }, text);
  const body = rows.map(([first, ...cells]) => h("tr", {}, th("row", first), ...cells.map((cell) => h("td", { translate: false }, cell))));
  return h("table", {}, h("thead", {}, h("tr", {}, ...head.map((text) => th("col", text)))), h("tbody", {}, ...body));
}

/** Isolates the text direction of a name in a longer text. @param {string} text */
export const isolate = (text) => `\u2068${text}\u2069`;

/** Shows a name that a client chose: it has its own text direction, is not translated, and keeps its end where it is too long. @param {string} text */
export const bdi = (text) => h("bdi", { dir: "auto", translate: false }, ...nameParts(text));

const LONG = 18; // Characters; shorter names fit everywhere.
const LAST_PART = /^[\u0020-\u024f]*?(?=[ ._:\-/][^ ._:\-/]{1,16}$)/;

/** Splits a long name before its last part. The style sheet shortens what comes before. Only Latin letters can be cut anywhere. @param {string} text */
export function nameParts(text) {
  const before = text.length > LONG ? LAST_PART.exec(text)?.[0] : "";
  return before ? [h("span", { className: "name-start" }, before), h("span", { className: "name-end" }, text.slice(before.length))] : [text];
}
