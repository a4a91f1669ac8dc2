// The form of an event's goal, in a dialog. Without an admin key, it begins with the form for one.

import { getPermissions, send } from "../data/api.js";
import { apiKey } from "../data/prefs.js";
import { byId, h } from "../lib/dom.js";
import { createField, createNumberField, options, showProblem } from "./form-fields.js";
import { createKeyForm } from "./key-form.js";

/** @param {string} event @param {Goal|undefined} goal the present one @param {{onKey: () => void, onSaved: () => void}} callbacks */
export async function openGoalForm(event, goal, callbacks) {
  const dialog = byId("confirm");
  const cancel = h("button", { className: "button", type: "button" }, "Cancel");
  const title = h("h2", { id: "confirm-title" }, "Goal of ", h("bdi", { dir: "auto", translate: false }, event));
  cancel.addEventListener("click", () => dialog.close());
  const { hash } = location;
  const permissions = await getPermissions(apiKey()).catch(() => null);
  if (location.hash !== hash) return; // The reader has gone to another page.
  if (!dialog.open) dialog.showModal();
  if (permissions?.admin) return drawForm();
  const keyHost = h("div", {});
  createKeyForm(keyHost, () => { callbacks.onKey(); openGoalForm(event, goal, callbacks); }, "Admin key");
  dialog.replaceChildren(title, h("p", {}, "All readers see goals. To set one, enter an admin key."), keyHost, h("p", { className: "buttons" }, cancel));
  /** @type {HTMLInputElement} */ (keyHost.querySelector("input[type=password]")).focus();

  function drawForm() {
    const number = createNumberField("goal-number", "Number to reach", goal?.target ?? "");
    const period = createField("goal-period", "Counted", "select", {}, ...options({ count: "Each day", total: "In total" }));
    const settings = h("a", { href: "#/settings", onclick: () => dialog.close() }, "Settings");
    const problem = h("p", { className: "problem", role: "alert" });
    const remove = h("button", { className: "button danger toggle", type: "button", hidden: !goal }, "Remove goal");
    const form = h("form", { method: "dialog" }, title, number.el, period.el, h("p", { className: "note" }, "This browser can notify you when the goal is reached. Turn it on in ", settings, "."), problem, h("p", { className: "buttons" }, cancel, h("button", { className: "button primary" }, "Save"), remove));
    const path = `/goals/${encodeURIComponent(event)}`;
    const run = async (/** @type {Promise<unknown>} */ request) => {
      const message = await request.then(() => "", (error) => error.message);
      showProblem({ [period.input.value]: number }, problem, message);
      if (message) return;
      callbacks.onSaved();
      dialog.close();
    };
    period.input.value = goal && !goal.isDaily ? "total" : "count";
    remove.addEventListener("click", () => run(send("DELETE", path)));
    form.addEventListener("submit", (submitted) => {
      submitted.preventDefault();
      run(send("PUT", path, { [period.input.value]: Number(number.input.value) }));
    });
    dialog.replaceChildren(form);
    number.input.select();
  }
}
