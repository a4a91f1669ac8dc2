// The notes of a chart, and the dialog that lists, adds and deletes them.

import { getPermissions, serverNow, throttle } from "../data/api.js";
import { addNote, deleteNote, getNotes } from "../data/notes.js";
import { apiKey } from "../data/prefs.js";
import { bdi, byId, h } from "../lib/dom.js";
import { dateTime, shortDate, time } from "../lib/format.js";

const LOAD_MS = 60_000; // Notes are not sent live, because they change rarely.
const LISTED_MAX = 100;
const CHANGED = "tally-notes"; // An event of the window, because a note can belong to several charts.

const noteText = (/** @type {TimelineNote} */ { event, text }) => [...(event === null ? [] : [bdi(event), ": "]), bdi(text)];

/** Returns a note as text with the part of its time that a bar does not have. @param {TimelineNote} note @param {string} step of the chart */
export function noteOfBar(note, step) {
  const when = step === "minute" ? "" : step === "month" ? shortDate(note.at) : time(Date.parse(note.at));
  return [...(when ? [`${when} `] : []), ...noteText(note)];
}

/** @param {HTMLElement} host a section with a chart @param {(notes: TimelineNote[]) => void} onLoad */
export function createChartNotes(host, onLoad) {
  const button = h("button", { className: "button quiet toggle", type: "button" }, "Notes");
  let event = "";
  let since = Infinity;
  /** @type {TimelineNote[]} */ let notes = [];
  let drawList = () => {};
  host.querySelector(".foot")?.append(button);

  function set(/** @type {TimelineNote[]} */ next) {
    notes = next;
    onLoad(notes);
    drawList();
  }

  const load = throttle(LOAD_MS, async () => {
    const requestedEvent = event;
    const found = await getNotes(event, since).catch(() => null);
    if (found && requestedEvent === event) set(found);
  });
  addEventListener(CHANGED, () => { if (since < Infinity) load.now(); });
  button.addEventListener("click", async () => { drawList = await openDialog(event, () => notes); });

  return {
    /** Chooses the event of the notes. @param {string} name an event name, or "" for all events */
    show(name) {
      if (name === event) return;
      event = name;
      since = Infinity;
      set([]);
    },
    /** Loads the notes if they may have changed. @param {number} start of the chart in ms */
    load(start) {
      if (start >= since) return load();
      since = start;
      load.now();
    },
  };
}

/** Returns a function that draws the list again. @param {string} event or "" @param {() => TimelineNote[]} read returns the present notes of the chart */
async function openDialog(event, read) {
  const { hash } = location;
  const { write, admin } = await getPermissions(apiKey()).catch(() => ({ write: true, admin: true })); // The server decides.
  if (location.hash !== hash) return () => {}; // The reader has gone to another page.
  const problem = h("p", { className: "problem", role: "alert" });
  const list = h("ul", { className: "notes" });
  const hint = h("p", { className: "note" });

  /** @param {Promise<unknown>} request */
  async function change(request) {
    problem.textContent = await request.then(() => "", ({ message }) => message);
    if (problem.textContent) return false;
    dispatchEvent(new Event(CHANGED));
    return true;
  }

  function drawList() {
    const rows = read().slice(-LISTED_MAX).reverse().map((note) => {
      const remove = h("button", { className: "button quiet", type: "button", ariaLabel: `Delete: ${note.text}` }, "Delete");
      remove.addEventListener("click", async () => { if (await change(deleteNote(note.id))) byId("notes-title").focus(); });
      return h("li", {}, h("div", {}, ...noteText(note), h("time", { className: "note", dateTime: note.at }, dateTime(Date.parse(note.at)))), ...(admin ? [remove] : []));
    });
    list.replaceChildren(...(rows.length ? rows : [h("li", {}, "There are no notes in this chart.")]));
    const actions = [...(write ? [] : ["add notes, enter a write key"]), ...(admin || !rows.length ? [] : ["delete notes, enter an admin key"])];
    hint.textContent = actions.map((action) => `To ${action} in Settings.`).join(" ");
  }

  drawList();
  byId("notes-body").replaceChildren(...(write ? [createForm(event, change)] : []), problem, list, hint);
  byId("notes").showModal();
  if (write) byId("note-text").focus();
  return drawList;
}

/** @param {string} event or "" @param {(request: Promise<unknown>) => Promise<boolean>} change */
function createForm(event, change) {
  const text = /** @type {HTMLInputElement} */ (h("input", { id: "note-text", maxLength: 200, required: true, autocomplete: "off" }));
  const at = /** @type {HTMLInputElement} */ (h("input", { id: "note-at", type: "datetime-local", required: true, value: localMinute(serverNow()) }));
  const scope = /** @type {HTMLSelectElement} */ (h("select", { id: "note-event" }, h("option", { value: event }, "This event’s charts"), h("option", { value: "" }, "All charts")));
  const submit = /** @type {HTMLButtonElement} */ (h("button", { className: "button primary" }, "Add note"));
  const field = (/** @type {string} */ label, /** @type {HTMLElement} */ input) => h("p", { className: "field" }, h("label", { htmlFor: input.id }, label), input);
  const form = h("form", {}, field("Text", text), h("div", { className: "pair" }, field("Time", at), ...(event ? [field("Show on", scope)] : [])), ...(event ? [] : [h("p", { className: "note" }, "All charts show it.")]), submit);
  form.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    submit.disabled = true;
    const note = { text: text.value.trim(), at: new Date(at.value).toISOString(), event: (event && scope.value) || null };
    if (await change(addNote(note))) text.value = "";
    submit.disabled = false;
    text.focus();
  });
  return form;
}

/** Returns the value of a field for a local time. @param {number} at ms */
const localMinute = (at) => new Date(at - 60_000 * new Date(at).getTimezoneOffset()).toISOString().slice(0, 16);
