// The alerts page, for administrators: what each alert waits for, where it is sent, and what was not delivered.

import { FORMATS, hostOf, openAlertForm, WINDOWS } from "../components/alert-form.js";
import { confirmTyped } from "../components/confirm-dialog.js";
import { createKeyForm } from "../components/key-form.js";
import { get, getPermissions, send, throttle } from "../data/api.js";
import { apiKey } from "../data/prefs.js";
import { bdi, byId, h, setText } from "../lib/dom.js";
import { number, plural } from "../lib/format.js";
import { link, navigate, parseHash } from "../lib/router.js";

const RELOAD_MS = 15_000;

/** Returns a condition in words. @param {Alert["when"]} when */
function conditionText({ count, total, every, above, below, window = "" }) {
  if (count) return `when today’s count reaches ${number(count)}`;
  if (total) return `when the total reaches ${number(total)}`;
  if (every) return `at each multiple of ${number(every)} in the total`;
  if (above) return `when there are more than ${plural(above, "hit")} in ${WINDOWS[window]}`;
  return below === 1 ? `when there are no hits in ${WINDOWS[window]}` : `when there are fewer than ${plural(below ?? 0, "hit")} in ${WINDOWS[window]}`;
}

/** Returns what was not delivered, in words. @param {Alert} alert */
function deliveryText({ undelivered, pending, error }) {
  const states = Object.entries({ waiting: pending, failed: undelivered - pending }).filter(([, count]) => count);
  return states.map(([state, count]) => `${plural(count, "message")} ${state}`).join(", ") + (error && `: ${error}`);
}

/** @param {Session} session @returns {Page} */
export function createPage({ reconnect }) {
  const dialog = byId("alert-form");
  const list = byId("alerts-list");
  const note = byId("alerts-note");
  /** The rows by alert, each with the text that it was made of. @type {Map<string, {el: HTMLElement, text: string}>} */ let rows = new Map();
  let latestLoad = 0;
  let isNew = true; // The page was opened, and nothing has loaded since.
  const back = byId("alerts-back");
  /** The event of the address, until its form was opened. */ let wantedEvent = "";
  /** The event that the reader has come from, or "". */ let fromEvent = "";

  byId("alerts-locked").append(h("div", { id: "alerts-key" }));
  const drawKeyForm = createKeyForm(byId("alerts-key"), reconnect, "Admin key");

  const load = throttle(RELOAD_MS, async () => {
    const loadNumber = ++latestLoad;
    /** @type {Alert[]|Error|null} */ const found = await loadAlerts().catch((error) => error);
    if (loadNumber !== latestLoad) return;
    byId("alerts-locked").hidden = Boolean(found);
    byId("alerts-panel").hidden = byId("alert-add").hidden = !found;
    if (!found) return showLocked();
    if (found instanceof Error) return setText(note, `Could not load the alerts. ${found.message}`);
    draw(found);
    if (wantedEvent) openForm({ event: wantedEvent });
    wantedEvent = "";
  });

  /** Returns null without an admin key. @returns {Promise<Alert[]|null>} */
  async function loadAlerts() {
    return (await getPermissions(apiKey())).admin ? get("/alerts") : null;
  }

  function showLocked() {
    const hint = "Alerts send messages to other servers, so only an admin key may see and change them (TALLY_ADMIN_KEYS).";
    setText(byId("alerts-reason"), apiKey() ? `${hint} The present key is not one.` : hint);
    drawKeyForm();
    if (isNew) byId("alerts-key").querySelector("input[type=password]").focus();
    isNew = false;
  }

  function draw(/** @type {Alert[]} */ alerts) {
    setText(note, alerts.length ? "" : "No alerts yet. Add one to get a message when an event reaches a number, or when its hits stop.");
    const previous = rows;
    rows = new Map(alerts.map((alert) => {
      const text = JSON.stringify(alert);
      const row = previous.get(alert.id);
      return [alert.id, row?.text === text ? row : { text, el: createRow(alert) }];
    }));
    const els = [...rows.values()].map(({ el }) => el);
    if (els.some((el, i) => el !== list.children[i]) || list.children.length > els.length) list.replaceChildren(...els);
  }

  function createRow(/** @type {Alert} */ alert) {
    const button = (/** @type {string} */ label, /** @type {() => void} */ run) => {
      const el = h("button", { className: "button", type: "button", ariaLabel: `${label} the alert of ${alert.event}` }, label);
      el.addEventListener("click", run);
      return el;
    };
    const outcome = h("p", { className: "note", role: "status" });
    return h("li", { className: "alert" },
      h("div", {},
        h("p", {}, h("a", { href: link("event", alert.event), translate: false }, bdi(alert.event)), ` ${conditionText(alert.when)}`),
        h("p", { className: "note" }, `${FORMATS[alert.format]} to ${hostOf(alert.url)}`), h("p", { className: "problem" }, deliveryText(alert)), outcome),
      h("p", { className: "actions" }, button("Test", () => sendTest(alert, outcome)), button("Edit", () => openForm({ alert })), button("Delete", () => confirmDelete(alert))));
  }

  async function sendTest(/** @type {Alert} */ { id }, /** @type {HTMLElement} */ outcome) {
    outcome.className = "note";
    setText(outcome, "Sending a test message…");
    const { error } = await send("POST", `/alerts/${id}/test`).catch(({ message }) => ({ error: message }));
    outcome.className = error ? "problem" : "note";
    setText(outcome, error ? `The test message was not accepted: ${error}` : "The test message was accepted.");
  }

  const openForm = (/** @type {Parameters<typeof openAlertForm>[0]} */ initial) => openAlertForm(initial, load.now);

  const confirmDelete = (/** @type {Alert} */ { id, event }) => confirmTyped({
    title: "Delete this alert?", text: "This also deletes its messages that were not sent. You can’t undo this.", word: event, action: "Delete",
    run: () => send("DELETE", `/alerts/${id}`), onDone: load.now,
  });

  byId("alert-add").addEventListener("click", () => openForm({}));
  // The form may be closed because the reader has gone to another page.
  dialog.addEventListener("close", () => { if (parseHash(location.hash).view === "alerts") navigate(link("alerts", "", { from: fromEvent }), { replace: true }); });

  return {
    title: () => "Alerts",
    show({ query }) {
      isNew = true;
      wantedEvent = query.get("event") ?? "";
      fromEvent = wantedEvent || (query.get("from") ?? "");
      back.hidden = !fromEvent;
      back.replaceChildren(h("a", { href: link("event", fromEvent) }, "Back to ", bdi(fromEvent)));
      wantedEvent ? load.now() : load();
    },
    hide() {
      latestLoad += 1; // No form may open on another page.
      dialog.close();
    },
    reload: load.now,
    tick: load,
  };
}
