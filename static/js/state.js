// @ts-check
// One name for how things stand, and its sentence. Pure.

import { clock, size } from "./format.js";

/** @typedef {import("./live.js").StatusName|"paused"|"limited"|"spooling"|"down"} Name */

export const LABEL = {
  loading: "Connecting", live: "Live", paused: "Paused", reconnecting: "Reconnecting", offline: "Offline", stale: "No word",
  locked: "Needs a key", limited: "Slowed down", spooling: "Store away", degraded: "Degraded", down: "Refusing hits",
};
/** The numbers are the last ones known, and may be old. @param {Name} name */
export const isOld = (name) => ["reconnecting", "offline", "stale"].includes(name);

/**
 * What is worst is said; what the reader chose comes before what only slows.
 * @param {{live: import("./live.js").StatusName, paused: boolean, limited: boolean,
 *   health: {status: string, staleSeconds: number|null}|null}} facts
 * @returns {Name}
 */
export function resolve({ live, paused, limited, health }) {
  if (live !== "live" && live !== "degraded") return live;
  if (paused) return "paused";
  if (health?.status === "down") return "down";
  if (live === "degraded") return health?.staleSeconds == null ? "degraded" : "spooling";
  return limited ? "limited" : "live";
}

/** @param {import("./session.js").Shown} status */
export function sentence({ name, reasons, asOf, hint, limitedMs, health, waiting }) {
  const shown = `Showing the numbers as of ${clock(asOf)}.`;
  const seconds = Math.ceil(limitedMs / 1000);
  if (name === "spooling" && health?.ack === "memory") return "The store is away. Hits are kept in memory and counted when it is back.";
  if (name === "spooling") return `The store is away. Hits are kept on disk (${size(health?.spoolBytes ?? 0)}) and counted when it is back.`;
  if (name === "degraded") return `Not all is well: ${reasons.join("; ")}.`;
  if (name === "down") return `Hits are refused: ${(health?.reasons ?? reasons).join("; ")}.`;
  if (name === "limited") return `This address asks more than it may. Charts go on in ${seconds} s; counts are live.`;
  if (name === "paused") return waiting ? `Paused, ${waiting} changes are waiting.` : "Paused.";
  if (name === "locked") return "Reading needs a key.";
  if (name === "stale") return `The server has not been heard for a while. ${shown}`;
  if (name === "reconnecting" && hint) return "No live connection yet. Behind a reverse proxy? It has to pass WebSocket upgrades on /socket.io/.";
  if (name === "reconnecting") return `Connection lost, trying again. ${shown}`;
  return name === "offline" ? `You are offline. ${shown}` : LABEL[name];
}
