// The status pill, the banner for trouble that lasts, and the announcement for screen readers.

import { describe, isOutdated, LABELS } from "../data/connection-status.js";
import { byId } from "../lib/dom.js";
import { plural, timeWithSeconds } from "../lib/format.js";

const BANNER_DELAY_MS = 2000; // Most reconnects are over by then and need no banner.

/** @param {() => void} retry @returns {(status: Status) => void} shows a status */
export function createStatusBanner(retry) {
  const pill = byId("status");
  const banner = byId("banner");
  const text = banner.querySelector("p");
  const button = banner.querySelector("button");
  let timer = 0;
  let lasting = false;
  let updated = false;
  button.addEventListener("click", () => (updated ? location.reload() : retry()));

  return (status) => {
    const { name } = status;
    const changed = pill.dataset.state !== name;
    const calm = ["live", "loading", "paused", "locked"].includes(name);
    const outdated = isOutdated(name);
    updated = status.updated && calm;
    pill.dataset.state = banner.dataset.state = name;
    pill.lastElementChild.textContent = name === "paused" && status.waiting ? `Paused · ${plural(status.waiting, "update")}` : LABELS[name];
    document.body.classList.toggle("stale", outdated);
    for (const el of document.querySelectorAll(".as-of")) el.textContent = outdated ? `as of ${timeWithSeconds(status.asOf)}` : "";
    text.textContent = updated ? "Tally was updated. Reload to use the new version." : describe(status);
    button.textContent = updated ? "Reload" : "Retry now";
    button.hidden = !updated && !outdated;
    lasting &&= !changed;
    banner.hidden = !updated && (calm || !lasting);
    if (!changed) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      lasting = true;
      banner.hidden = !updated && calm;
      byId("announce").textContent = text.textContent;
    }, BANNER_DELAY_MS);
  };
}
