// @ts-check
// What the reader chooses, the key, and how the service is.

import { postReset } from "./api.js";
import { confirmTyped } from "./confirm.js";
import { byId, h, segments } from "./dom.js";
import { dayEnd, number, size } from "./format.js";
import { choose, key, pref, useKey } from "./prefs.js";

/** @type {Record<string, Record<string, string>>} */
const CHOICES = {
  theme: { system: "As the system", light: "Light", dark: "Dark" },
  density: { comfortable: "Comfortable", compact: "Compact" },
  shortcuts: { on: "On", off: "Off" },
  announce: { 0: "Off", 30: "Every 30 s", 60: "Every minute" },
};

/** @param {import("./api.js").Health} health @returns {Record<string, string>} */
function facts({ status, reasons, store, survives, nodes, spoolBytes, staleSeconds, lostBatches, resetsAt, version }) {
  return {
    Status: [status, ...reasons].join("; "), Store: store, "A counted hit survives": survives, Nodes: number(nodes),
    ...(staleSeconds === null ? {} : { "Store away for": `${number(Math.round(staleSeconds))} s` }),
    ...(spoolBytes ? { "Waiting on disk": size(spoolBytes) } : {}),
    ...(lostBatches ? { "Batches lost by the store": number(lostBatches) } : {}),
    "The day ends": dayEnd(resetsAt), Version: version,
  };
}

/** @param {ReturnType<typeof import("./session.js").openSession>} session */
export function createSettings(session) {
  const [field, note, list] = ["key", "key-note", "health"].map(byId);
  const marks = Object.entries(CHOICES).map(([name, labels]) =>
    /** @type {const} */ ([name, segments(byId(`set-${name}`), `set-${name}`, labels, (value) => choose(name, value))]));

  function draw() {
    for (const [name, mark] of marks) mark(pref(name));
    byId("key-forget").hidden = !key();
    const health = session.health();
    const rows = health ? Object.entries(facts(health)) : [["Status", "The server does not answer."]];
    const text = rows.flat().join("\n");
    if (list.dataset.shown === text) return;
    list.dataset.shown = text;
    list.replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  /** @param {string} value @param {string} said */
  function take(value, said) {
    useKey(value);
    field.value = "";
    note.textContent = said;
    session.reconnect();
    draw();
  }

  byId("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    if (field.value.trim()) take(field.value.trim(), "Kept in this tab until it is closed.");
  });
  byId("key-forget").addEventListener("click", () => take("", "Forgotten."));
  byId("reset-all").addEventListener("click", () => confirmTyped({
    title: "Start the day again?", word: "reset", action: "Reset",
    text: "All of today’s counts become 0 on every page. What was counted stays in the day’s history as a part of its own; totals and charts keep everything.",
    run: postReset, done: session.reconnect,
  }));
  return { title: () => "Settings", show: draw, hide() { note.textContent = ""; }, renew: draw, paint() {}, tick: draw };
}
