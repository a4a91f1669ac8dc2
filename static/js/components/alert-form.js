// The form of an alert, in a dialog: its event, condition, receiver and URL. A new secret is shown once.

import { eventPath, get, send } from "../data/api.js";
import { byId, copyOnClick, h, setText } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { createField, createNumberField, options, showProblem } from "./form-fields.js";

/** @type {Record<string, string>} */ const CONDITIONS = {
  count: "Today’s count reaches", total: "The total reaches", every: "The total reaches each multiple of",
  above: "Hits within a time are more than", below: "Hits within a time are fewer than",
};
/** @type {Record<string, string>} */ export const FORMATS = { slack: "Slack", discord: "Discord", ntfy: "ntfy", json: "JSON" };
/** @type {Record<string, string>} */ const EXAMPLES = {
  slack: "https://hooks.slack.com/services/T…/B…/…", discord: "https://discord.com/api/webhooks/…/…", ntfy: "https://ntfy.sh/your-topic", json: "https://your.site/hook",
};
/** @type {Record<string, string>} */ const HOSTS = { "hooks.slack.com": "slack", "discord.com": "discord", "ntfy.sh": "ntfy" };
/** @type {Record<string, string>} */ export const WINDOWS = { "5m": "5 minutes", "1h": "1 hour", "1d": "1 day" };

/** Returns the host of a URL, or "" if it is not a complete one. @param {string} url */
export function hostOf(url) {
  try { return new URL(url).host; } catch { return ""; }
}

/** Returns a secret as in the Standard Webhooks specification. */
const newSecret = () => `whsec_${btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32))))}`;

/** Opens the form of a present alert, or of a new one for an event. @param {{alert?: Alert, event?: string}} initial @param {() => void} onSaved */
export function openAlertForm({ alert, event = "" }, onSaved) {
  const dialog = byId("alert-form");
  const kind = Object.keys(CONDITIONS).find((name) => name in (alert?.when ?? {})) ?? "count";
  const fields = {
    event: createField("alert-event", "Event", "input", { value: alert?.event ?? event, autocomplete: "off", spellcheck: false, dir: "auto" }),
    kind: createField("alert-kind", "Alert me when", "select", {}, ...options(CONDITIONS)),
    when: createNumberField("alert-when", "Number", /** @type {any} */ (alert?.when)?.[kind] ?? ""),
    window: createField("alert-window", "Time", "select", {}, ...options(WINDOWS)),
    format: createField("alert-format", "Send to", "select", {}, ...options({ ...FORMATS, json: "Other web address (JSON)" })),
    url: createField("alert-url", "URL of the webhook or topic", "input", { type: "url", value: alert?.url ?? "", autocomplete: "off", spellcheck: false }),
  };
  const { kind: { input: kindInput }, window: { input: windowInput }, format: { input: formatInput } } = fields;
  kindInput.value = kind;
  windowInput.value = alert?.when.window ?? "1h";
  formatInput.value = alert?.format ?? "json";
  const problem = h("p", { className: "problem", role: "alert" });
  const submit = /** @type {HTMLButtonElement} */ (h("button", { className: "button primary" }, alert ? "Save" : "Add alert"));
  const cancel = h("button", { className: "button", type: "button" }, "Cancel");
  const form = h("form", { method: "dialog" }, h("h2", { id: "alert-title" }, alert ? "Edit alert" : "Add an alert"),
    ...Object.values(fields).map(({ el }) => el), problem, h("p", { className: "buttons" }, cancel, submit));
  const hasWindow = () => ["above", "below"].includes(kindInput.value);
  const now = h("span", { className: "now value" });
  const warning = h("p", { className: "note warning", role: "status" });
  /** The numbers of the event, once they are loaded. @type {Record<string, number>|null} */ let numbers = null;
  fields.when.el.querySelector("label")?.append(" ", now);
  fields.when.el.after(warning);
  const showWindow = () => { fields.window.el.hidden = !hasWindow(); };

  const showExample = () => { fields.url.input.placeholder = EXAMPLES[formatInput.value]; };

  /** Shows the number that the condition compares, and whether it is too late for the alert to fire. */
  function showNow() {
    const [kind, threshold] = [kindInput.value, Number(fields.when.input.value)];
    const present = numbers?.[kind === "every" ? "total" : kind];
    setText(now, present === undefined ? "" : `now ${number(present)}`);
    const isPassed = present !== undefined && kind !== "every" && threshold > 0 && threshold <= present;
    setText(warning, !isPassed ? "" : kind === "count" ? `Today’s count is already ${number(present)}: this alert would not fire before tomorrow.`
      : `The total is already ${number(present)}: this alert would not fire.`);
  }

  async function loadNow() {
    const name = fields.event.input.value;
    const found = name && await get(eventPath(name)).catch(() => null);
    if (name !== fields.event.input.value) return;
    numbers = found || null;
    showNow();
  }

  /** Returns the body of the request. An alert that becomes JSON needs a secret that its reader has seen. */
  const values = () => ({
    event: fields.event.input.value,
    when: { [kindInput.value]: Number(fields.when.input.value), ...(hasWindow() && { window: windowInput.value }) },
    url: fields.url.input.value,
    format: formatInput.value,
    ...(formatInput.value === "json" && alert?.format !== "json" && { secret: newSecret() }),
  });

  /** @param {string} secret */
  function showSecret(secret) {
    const code = h("code", { tabIndex: 0 }, secret);
    const copy = h("button", { className: "button", type: "button" }, "Copy");
    const done = h("button", { className: "button primary" }, "Done");
    copyOnClick(copy, code);
    dialog.replaceChildren(h("form", { method: "dialog" }, h("h2", { id: "alert-title" }, "Signing secret"),
      h("p", {}, "Each message is signed with this secret. Copy it now: it will not be shown again."),
      h("div", { className: "curl" }, code, copy), h("p", { className: "buttons" }, done)));
    done.focus();
  }

  form.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    submit.disabled = true;
    const body = values();
    const message = await send(alert ? "PUT" : "POST", alert ? `/alerts/${alert.id}` : "/alerts", body).then(() => "", (error) => error.message);
    submit.disabled = false;
    showProblem(fields, problem, message);
    if (message) return;
    onSaved();
    body.secret ? showSecret(body.secret) : dialog.close();
  });
  fields.url.input.addEventListener("input", () => { formatInput.value = HOSTS[hostOf(fields.url.input.value)] ?? formatInput.value; });
  formatInput.addEventListener("change", showExample);
  kindInput.addEventListener("change", () => { showWindow(); showNow(); });
  fields.event.input.addEventListener("change", loadNow);
  fields.when.input.addEventListener("input", showNow);
  cancel.addEventListener("click", () => dialog.close());
  showWindow();
  showExample();
  loadNow();
  dialog.replaceChildren(form);
  dialog.showModal();
  (fields.event.input.value ? fields.when : fields.event).input.focus();
}
