// @ts-check
// The pill (at once), the banner (only when trouble lasts), and what a screen reader hears.

import { byId } from "./dom.js";
import { clock } from "./format.js";

const PATIENCE_MS = 2000; // most reconnects are over by then and need no banner
const LABEL = { loading: "Connecting", live: "Live", reconnecting: "Reconnecting", offline: "Offline", degraded: "Degraded" };

/** @param {import("./live.js").Status} status */
function sentence({ name, reasons, asOf, hint }) {
  if (name === "live" || name === "loading") return LABEL[name];
  if (name === "degraded") return `Not all is well: ${reasons.join("; ")}.`;
  if (hint) return "No live connection yet. Behind a reverse proxy? It has to pass WebSocket upgrades on /socket.io/.";
  return `${name === "offline" ? "You are offline." : "Connection lost, trying again."} Showing the numbers as of ${clock(asOf)}.`;
}

/** @param {() => void} retry @returns {(status: import("./live.js").Status) => void} */
export function createStatus(retry) {
  const [pill, banner, asOf, announce] = ["status", "banner", "as-of", "announce"].map(byId);
  const [text, button] = banner.children;
  let timer = 0;
  button.addEventListener("click", retry);

  return (status) => {
    const { name } = status;
    const changed = pill.dataset.state !== name;
    const trouble = name !== "live" && name !== "loading";
    const stale = trouble && name !== "degraded";
    pill.dataset.state = banner.dataset.state = name;
    pill.lastElementChild.textContent = LABEL[name];
    document.body.classList.toggle("stale", stale);
    asOf.textContent = stale ? `as of ${clock(status.asOf)}` : "";
    text.textContent = sentence(status);
    button.hidden = !stale;
    if (!trouble) banner.hidden = true;
    if (!changed) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      banner.hidden = !trouble;
      announce.textContent = text.textContent;
    }, PATIENCE_MS);
  };
}
