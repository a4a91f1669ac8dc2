// Notes on the timeline: requests, and the bar that each belongs to.

import { get, send } from "./api.js";

/** @type {Record<string, number>} */ const LENGTHS = { minute: 60_000, hour: 3_600_000 };
/** Days and months are those of the server: the beginning of a time names them. @type {Record<string, number>} */ const NAME_LENGTHS = { day: 10, month: 7 };

const DAY_MS = 86_400_000;
const iso = (/** @type {number} */ ms) => new Date(ms).toISOString();

/** Returns the notes since a time in ms: all, or those of an event and of all events. @param {string} event or "" @param {number} since @returns {Promise<TimelineNote[]>} */
export const getNotes = (event, since) => get(`/notes?${new URLSearchParams({ from: iso(since), ...(event && { event }) })}`);
/** Returns the notes of a day of the server, which begins up to a day before or after the same day in UTC. @param {string} day @returns {Promise<TimelineNote[]>} */
export async function getNotesOfDay(day) {
  const start = Date.parse(day);
  /** @type {TimelineNote[]} */ const notes = await get(`/notes?from=${iso(start - DAY_MS)}&to=${iso(start + 2 * DAY_MS)}`);
  return notes.filter(({ at }) => at.slice(0, 10) === day);
}
export const addNote = (/** @type {{text: string, at: string, event: string|null}} */ note) => send("POST", "/notes", note);
export const deleteNote = (/** @type {string} */ id) => send("DELETE", `/notes/${id}`);

/** Returns the notes of each bar. @param {Bucket[]} points @param {string} step @param {TimelineNote[]} notes */
export function notesOfBars(points, step, notes) {
  const bars = points.map(() => /** @type {TimelineNote[]} */ ([]));
  for (const note of notes) {
    const time = Date.parse(note.at);
    const isIn = NAME_LENGTHS[step] ? (/** @type {Bucket} */ { iso }) => iso.slice(0, NAME_LENGTHS[step]) === note.at.slice(0, NAME_LENGTHS[step])
      : (/** @type {Bucket} */ { start }) => start <= time && time < start + LENGTHS[step];
    bars[points.findIndex(isIn)]?.push(note);
  }
  return bars;
}

/** Returns notes in one line of text with their times of the server. @param {TimelineNote[]} notes */
export const inOneLine = (notes) => notes.map(({ at, text }) => `${at.slice(11, 16)} ${text}`).join("; ");
