// The pill (at once), the banner (only when trouble lasts), and what a screen reader hears.

import { isOld, LABEL, sentence } from "../data/connection-status.js";
import { byId } from "../lib/dom.js";
import { clock, number } from "../lib/format.js";

const PATIENCE_MS = 2000; // most reconnects are over by then and need no banner

/** @param {() => void} retry @returns {(status: Status) => void} */
export function createStatus(retry) {
  const [pill, banner, announce] = ["status", "banner", "announce"].map(byId);
  const [text, button] = banner.children;
  let [timer, lasting, updated] = [0, false, false];
  button.addEventListener("click", () => (updated ? location.reload() : retry()));

  return (status) => {
    const { name } = status;
    const changed = pill.dataset.state !== name;
    const calm = ["live", "loading", "paused", "locked"].includes(name);
    const old = isOld(name);
    updated = status.updated && calm;
    pill.dataset.state = banner.dataset.state = name;
    pill.lastElementChild.textContent = name === "paused" && status.waiting ? `Paused · ${number(status.waiting)} waiting` : LABEL[name];
    document.body.classList.toggle("stale", old);
    for (const el of document.querySelectorAll(".as-of")) el.textContent = old ? `as of ${clock(status.asOf)}` : "";
    text.textContent = updated ? "Tally has been updated." : sentence(status);
    button.textContent = updated ? "Reload" : "Retry now";
    button.hidden = !updated && !old;
    lasting &&= !changed;
    banner.hidden = !updated && (calm || !lasting);
    if (!changed) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      lasting = true;
      banner.hidden = !updated && calm;
      announce.textContent = text.textContent;
    }, PATIENCE_MS);
  };
}
