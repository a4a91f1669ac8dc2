// One name for how things stand, and its sentence. Pure.

import { clock, size } from "../lib/format.js";

export const LABEL = {
  loading: "Connecting", live: "Live", paused: "Paused", reconnecting: "Reconnecting", offline: "Offline", stale: "No word",
  locked: "Needs a key", limited: "Slowed down", spooling: "Store away", degraded: "Degraded", down: "Refusing hits",
};
/** The numbers are the last ones known, and may be old. @param {StatusName} name */
export const isOld = (name) => ["reconnecting", "offline", "stale"].includes(name);

/**
 * What is worst is said; what the reader chose comes before what only slows.
 * @param {{live: ConnectionName, paused: boolean, limited: boolean, health: Health|null}} facts @returns {StatusName}
 */
export function resolve({ live, paused, limited, health }) {
  if (live !== "live" && live !== "degraded") return live;
  if (paused) return "paused";
  if (health?.status === "down") return "down";
  if (live === "degraded") return health?.staleSeconds == null ? "degraded" : "spooling";
  return limited ? "limited" : "live";
}

/** @param {Status} status */
export function sentence({ name, reasons, asOf, hint, limitedMs, health, waiting }) {
  const shown = `Showing the numbers as of ${clock(asOf)}.`;
  const seconds = Math.ceil(limitedMs / 1000);
  const kept = health?.ack === "memory" ? "in memory" : `on disk (${size(health?.spoolBytes ?? 0)})`;
  if (name === "spooling") return `The store is away. Hits are kept ${kept} and counted when it is back.`;
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
