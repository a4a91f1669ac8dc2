// Links to the counts of chosen events, for administrators: a new one, which is shown once, and the list of all.

import { eventPath, get, getPermissions, send, SERVER_URL } from "../data/api.js";
import { apiKey } from "../data/prefs.js";
import { bdi, h, isolate, setText } from "../lib/dom.js";
import { dateTime, plural } from "../lib/format.js";
import { createCodeBlock } from "./code-block.js";
import { confirmTyped } from "./confirm-dialog.js";

const TITLE_LENGTH_MAX = 100;
const NAMES_SHOWN = 3;
const EVENTS_MAX = 50; // The server accepts no more.

/** Creates a link, and returns the elements that show it or the problem. @param {string} title @param {string[]} events */
async function createLink(title, events) {
  try {
    const { token } = await send("POST", "/shares", { title, events });
    const code = createCodeBlock("shared link");
    code.show(`${SERVER_URL}/share/${token}`);
    return [code.el, h("p", { className: "note" }, "Copy this link now: it is not shown again. You can revoke it in Settings.")];
  } catch (error) {
    return [h("p", { className: "problem" }, /** @type {Error} */ (error).message)];
  }
}

/** Returns a part of the share dialog. @param {string} name an event name */
export function createLinkSnippet(name) {
  const button = /** @type {HTMLButtonElement} */ (h("button", { className: "button", type: "button" }, "Create a shared link"));
  const result = h("div", { role: "status" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    result.replaceChildren(...await createLink([...name].slice(0, TITLE_LENGTH_MAX).join("").trim(), [name]));
    button.disabled = false;
    button.hidden = !result.querySelector(".problem");
  });
  return h("div", { className: "snippet" }, h("h3", {}, "Shared link"),
    h("p", { className: "note" }, "A page with the live count of this event only. It needs no key."),
    h("p", { className: "needs-admin note" }, "Enter an admin key in ", h("a", { href: "#/settings" }, "Settings"), " to create one."),
    h("fieldset", { className: "actions", disabled: true }, button), result);
}

const namesIn = (/** @type {string} */ text) => text.split("\n").map((name) => name.trim()).filter(Boolean);

/** Returns those names that were never counted, which may be misspelled. @param {string[]} names @param {Counters} counters */
async function findUncounted(names, counters) {
  const quiet = names.slice(0, EVENTS_MAX).filter((name) => !counters.countOf(name));
  const values = await Promise.all(quiet.map((name) => get(eventPath(name)).catch(() => null)));
  return quiet.filter((_, i) => values[i]?.total === 0);
}

/** @param {HTMLElement} host @param {Counters} counters @returns {{draw: () => void, load: () => void}} draw loads the list if the key has changed */
export function createShareList(host, counters) {
  const list = h("ul", { className: "rows", role: "list", hidden: true });
  const note = h("p", { className: "note", role: "status" });
  const title = /** @type {HTMLInputElement} */ (h("input", { id: "share-name", required: true, maxLength: TITLE_LENGTH_MAX, autocomplete: "off" }));
  const events = /** @type {HTMLTextAreaElement} */ (h("textarea", { id: "share-events", required: true, rows: 3, placeholder: "One name per line", spellcheck: false }));
  const warning = h("p", { className: "note warning", role: "status" });
  const result = h("div", { role: "status" });
  const form = h("form", { hidden: true }, h("h3", {}, "New link"),
    h("p", { className: "field" }, h("label", { htmlFor: title.id }, "Title"), title),
    h("p", { className: "field" }, h("label", { htmlFor: events.id }, "Events"), events), warning,
    h("p", { className: "actions" }, h("button", { className: "button primary" }, "Create a link")), result);
  /** @type {string|null} */ let loadedKey = null;
  host.append(note, list, form);

  async function load() {
    const key = loadedKey = apiKey();
    /** @type {Share[]|Error|null} */ const found = await loadShares().catch((error) => error);
    if (key !== loadedKey) return;
    const shares = Array.isArray(found) ? found : [];
    form.hidden = !Array.isArray(found);
    list.replaceChildren(...shares.map(createRow));
    list.hidden = !shares.length;
    setText(note, found instanceof Error ? found.message : found && !shares.length ? "No links yet." : "");
  }

  /** Returns null without an admin key. */
  const loadShares = async () => ((await getPermissions(apiKey())).admin ? get("/shares") : null);

  function createRow(/** @type {Share} */ share) {
    const names = share.events.slice(0, NAMES_SHOWN).join(", ");
    const more = share.events.length > NAMES_SHOWN ? ` and ${plural(share.events.length - NAMES_SHOWN, "more event")}` : "";
    const revoke = h("button", { className: "button", type: "button", ariaLabel: `Revoke the link ${share.title}` }, "Revoke");
    revoke.addEventListener("click", () => confirmTyped({
      title: "Revoke this link?", text: `${share.title} stops working, also on pages that are open. You can’t undo this.`, word: "revoke", action: "Revoke",
      run: () => send("DELETE", `/shares/${share.id}`), onDone: load,
    }));
    return h("li", {}, h("div", {}, h("b", {}, bdi(share.title)), h("p", { className: "note" }, bdi(names), `${more} · ${dateTime(Date.parse(share.createdAt))}`)), revoke);
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    result.replaceChildren(...await createLink(title.value.trim(), namesIn(events.value)));
    if (result.querySelector(".problem")) return;
    title.value = events.value = "";
    load();
  });
  events.addEventListener("change", async () => {
    const uncounted = await findUncounted(namesIn(events.value), counters);
    setText(warning, uncounted.length ? `Not counted yet: ${uncounted.map(isolate).join(", ")}. Check the spelling.` : "");
  });
  return { draw: () => { if (apiKey() !== loadedKey) load(); }, load };
}
