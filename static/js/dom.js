// @ts-check
// The few DOM helpers everything else uses. Text only ever goes in as text.

export const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * An HTML element: properties where the element has them, attributes otherwise.
 * @param {string} tag @param {Record<string, any>} [props] @param {...(Node|string)} children
 */
export function h(tag, props = {}, ...children) {
  const el = /** @type {any} */ (document.createElement(tag));
  for (const [key, value] of Object.entries(props)) key in el ? (el[key] = value) : el.setAttribute(key, value);
  el.append(...children);
  return /** @type {HTMLElement} */ (el);
}

/**
 * An SVG element; a string child becomes its text.
 * @param {string} tag @param {Record<string, string|number>} attrs @param {...(Node|string)} children
 * @returns {any}
 */
export function s(tag, attrs, ...children) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attrs)) el.setAttribute(key, String(value));
  el.append(...children);
  return el;
}
