// Code with a button that copies it.

import { copyOnClick, h, setText } from "../lib/dom.js";

/** @param {string} label what the button copies @returns {{el: HTMLElement, show: (text: string) => void}} */
export function createCodeBlock(label) {
  const code = h("code", { tabIndex: 0, translate: false });
  const button = h("button", { className: "button", type: "button", ariaLabel: `Copy: ${label}` }, "Copy");
  copyOnClick(button, code);
  return { el: h("div", { className: "curl" }, code, button), show: (text) => setText(code, text) };
}
