// The one status that the dashboard shows, with its label and its sentence.

import { byteSize, plural, timeWithSeconds } from "../lib/format.js";

export const LABELS = {
  loading: "Connecting", live: "Live", paused: "Paused", reconnecting: "Reconnecting", offline: "Offline", stale: "Not responding",
  locked: "Key required", limited: "Rate limited", spooling: "Redis unreachable", degraded: "Degraded", down: "Rejecting hits",
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
  const age = `Showing counts as of ${timeWithSeconds(asOf)}.`;
  const spool = health?.ack === "memory" ? "in memory" : `to disk (${byteSize(health?.spoolBytes ?? 0)})`;
  if (name === "spooling") return `Redis is unreachable. Hits are being saved ${spool} and will be counted when it is back.`;
  if (name === "degraded") return `Degraded: ${reasons.join("; ")}.`;
  if (name === "down") return `Hits are being rejected: ${(health?.reasons ?? reasons).join("; ")}.`;
  if (name === "limited") return `Rate limit reached. Charts resume in ${Math.ceil(limitedMs / 1000)} s; counts are still live.`;
  if (name === "paused") return waiting ? `Paused. ${plural(waiting, "update")} waiting.` : "Paused.";
  if (name === "locked") return "This dashboard requires a key.";
  if (name === "stale") return `No updates from the server for a while. ${age}`;
  if (name === "reconnecting" && hint) return "Can’t open a live connection. If Tally runs behind a reverse proxy, check that it passes on /socket.io/.";
  if (name === "reconnecting") return `Connection lost. Reconnecting… ${age}`;
  return name === "offline" ? `You are offline. ${age}` : LABELS[name];
}
