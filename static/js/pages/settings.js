// What the reader chooses, the key, and how the service is.

import { confirmTyped } from "../components/confirm-dialog.js";
import { createKeyForm } from "../components/key-form.js";
import { send } from "../data/api.js";
import { choose, pref } from "../data/prefs.js";
import { byId, h, segments } from "../lib/dom.js";
import { dayEnd, number, size } from "../lib/format.js";

/** @type {Record<string, [string, Record<string, string>]>} */
const CHOICES = {
  theme: ["Theme", { system: "As the system", light: "Light", dark: "Dark" }],
  density: ["Cards", { comfortable: "Comfortable", compact: "Compact" }],
  shortcuts: ["Shortcuts of one key", { on: "On", off: "Off" }],
  announce: ["Speak the sum (screen readers)", { 0: "Off", 30: "Every 30 s", 60: "Every minute" }],
};

/** @param {Health} health @returns {Record<string, string>} */
function facts({ status, reasons, store, survives, nodes, spoolBytes, staleSeconds, lostBatches, resetsAt, version }) {
  return {
    Status: [status, ...reasons].join("; "), Store: store, "A counted hit survives": survives, Nodes: number(nodes),
    ...(staleSeconds === null ? {} : { "Store away for": `${number(Math.round(staleSeconds))} s` }),
    ...(spoolBytes ? { "Waiting on disk": size(spoolBytes) } : {}),
    ...(lostBatches ? { "Batches lost by the store": number(lostBatches) } : {}),
    "The day ends": dayEnd(resetsAt), Version: version,
  };
}

/** @param {Session} session @returns {Page} */
export function createSettings(session) {
  const list = byId("health");
  const showKey = createKeyForm(byId("key"), session.reconnect);
  const marks = Object.entries(CHOICES).map(([name, [title, labels]]) => {
    const group = h("fieldset", { className: "segments", ariaLabel: title, id: `set-${name}` });
    byId("choices").append(h("div", { className: "setting" }, h("span", {}, title), group));
    return { name, mark: segments(group, name, labels, (value) => choose(name, value)) };
  });

  function draw() {
    for (const { name, mark } of marks) mark(pref(name));
    showKey();
    const health = session.health();
    const rows = health ? Object.entries(facts(health)) : [["Status", "The server does not answer."]];
    const text = rows.flat().join("\n");
    if (list.dataset.shown === text) return;
    list.dataset.shown = text;
    list.replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  byId("reset-all").addEventListener("click", () => confirmTyped({
    title: "Start the day again?", word: "reset", action: "Reset",
    text: "All of today’s counts become 0 on every page. What was counted stays in the day’s history as a part of its own; totals and charts keep everything.",
    run: () => send("POST", "/reset"), done: session.reconnect,
  }));
  return { title: () => "Settings", show: draw, renew: draw, tick: draw };
}
