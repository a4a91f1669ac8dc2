// The one status that the dashboard shows, with its label and its sentence.

import { byteSize, timeWithSeconds } from "../lib/format.js";

export const LABELS = {
  loading: "Connecting", live: "Live", paused: "Paused", reconnecting: "Reconnecting", offline: "Offline", stale: "Not responding",
  locked: "Needs a key", limited: "Rate limited", spooling: "Store offline", degraded: "Degraded", down: "Refusing hits",
};
/** Whether the numbers on the page are the last known ones and may be old. @param {StatusName} name */
export const isOutdated = (name) => ["reconnecting", "offline", "stale"].includes(name);

/** Returns the worst status. @param {{connection: ConnectionName, paused: boolean, limited: boolean, health: Health|null}} facts @returns {StatusName} */
export function currentStatus({ connection, paused, limited, health }) {
  if (connection !== "live" && connection !== "degraded") return connection;
  if (paused) return "paused";
  if (health?.status === "down") return "down";
  if (connection === "degraded") return health?.staleSeconds == null ? "degraded" : "spooling";
  return limited ? "limited" : "live";
}

export function describe(/** @type {Status} */ { name, reasons, asOf, hint, limitedMs, health, waiting }) {
  const age = `Showing the numbers as of ${timeWithSeconds(asOf)}.`;
  const spool = health?.ack === "memory" ? "in memory" : `on disk (${byteSize(health?.spoolBytes ?? 0)})`;
  if (name === "spooling") return `The store is unreachable. Hits are kept ${spool} and counted when it is back.`;
  if (name === "degraded") return `Degraded: ${reasons.join("; ")}.`;
  if (name === "down") return `Hits are rejected: ${(health?.reasons ?? reasons).join("; ")}.`;
  if (name === "limited") return `This address asks more than it may. Charts update again in ${Math.ceil(limitedMs / 1000)} s; counts are live.`;
  if (name === "paused") return waiting ? `Paused, ${waiting} changes are waiting.` : "Paused.";
  if (name === "locked") return "This Tally needs an API key.";
  if (name === "stale") return `No updates from the server. ${age}`;
  if (name === "reconnecting" && hint) return "No live connection yet. Behind a reverse proxy? It must forward WebSocket upgrades on /socket.io/.";
  if (name === "reconnecting") return `Connection lost. Reconnecting. ${age}`;
  return name === "offline" ? `You are offline. ${age}` : LABELS[name];
}
