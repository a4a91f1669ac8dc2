// The settings page: the reader's preferences, the API key, the server's health, and the reset of the day.

import { confirmTyped } from "../components/confirm-dialog.js";
import { createKeyForm } from "../components/key-form.js";
import { createShareList } from "../components/share-links.js";
import { send } from "../data/api.js";
import { areNotificationsOn, canNotify, notificationText, setNotifications } from "../data/notifications.js";
import { getPref, setPref } from "../data/prefs.js";
import { byId, createSegmentedControl, h, setText } from "../lib/dom.js";
import { byteSize, dayEnd, number } from "../lib/format.js";

/** @type {Record<string, [string, Record<string, string>]>} */ const CHOICES = {
  theme: ["Theme", { system: "System", light: "Light", dark: "Dark" }],
  density: ["Card size", { comfortable: "Comfortable", compact: "Compact" }],
  shortcuts: ["Single-key shortcuts", { on: "On", off: "Off" }],
  announce: ["Announce the total (screen readers)", { 0: "Off", 30: "Every 30 s", 60: "Every minute" }],
};

/** @param {Health} health @returns {Record<string, string>} */
function healthFacts({ status, reasons, store, durability, nodes, spoolBytes, staleSeconds, lostBatches, resetsAt, version }) {
  return {
    Status: [status, ...reasons].join("; "), Store: store, Durability: `An acknowledged hit survives ${durability}`, Nodes: number(nodes),
    ...(staleSeconds === null ? {} : { "Redis unreachable for": `${number(Math.round(staleSeconds))} s` }),
    ...(spoolBytes ? { "Spooled on disk": byteSize(spoolBytes) } : {}),
    ...(lostBatches ? { "Lost commits": number(lostBatches) } : {}),
    "Day ends": dayEnd(resetsAt), Version: version,
  };
}

/** @param {Session} session @returns {Page} */
export function createPage(session) {
  const healthList = byId("health");
  const drawKeyForm = createKeyForm(byId("key"), session.reconnect);
  const shares = createShareList(byId("shares"), session.counters);
  const controls = Object.entries(CHOICES).map(([name, [title, labels]]) => {
    const group = h("fieldset", { className: "segments", ariaLabel: title, id: `set-${name}` });
    byId("choices").append(h("div", { className: "setting" }, h("span", {}, title), group));
    return { name, select: createSegmentedControl(group, name, labels, (value) => setPref(name, value)) };
  });

  const notifyButton = h("button", { className: "button", type: "button", "aria-describedby": "set-notify" });
  const notifyNote = h("p", { className: "note", role: "status" });
  byId("choices").append(h("div", { className: "setting" }, h("span", { id: "set-notify" }, "Notify me when a goal is reached"), notifyButton), notifyNote);
  notifyButton.addEventListener("click", async () => {
    await setNotifications(!areNotificationsOn());
    draw();
  });

  function drawNotifications() {
    notifyButton.hidden = !canNotify();
    setText(notifyButton, areNotificationsOn() ? "Turn off" : "Turn on");
    setText(notifyNote, notificationText());
  }

  function draw() {
    drawNotifications();
    for (const { name, select } of controls) select(getPref(name));
    drawKeyForm();
    shares.draw();
    const health = session.health();
    const rows = health ? Object.entries(healthFacts(health)) : [["Status", "The server is not responding."]];
    const text = rows.flat().join("\n");
    if (healthList.dataset.shown === text) return;
    healthList.dataset.shown = text;
    healthList.replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { translate: !/^\d/.test(value) }, value))));
  }

  byId("reset-all").addEventListener("click", () => confirmTyped({
    title: "Reset all of today’s counts?", word: "reset", action: "Reset",
    text: "Counts go to 0 for everyone. The counts so far stay in History; totals and charts are unchanged.",
    run: () => send("POST", "/reset"), onDone: session.reconnect,
  }));
  return {
    title: () => "Settings",
    show() {
      shares.load();
      draw();
    },
    reload: draw,
    tick: draw,
  };
}
