// @ts-check
// HTTP: what the pages ask, the key they ask with, what refuses them, and the server's clock.

import { key } from "./prefs.js";

/** @typedef {{start: string, count: number}} Point */
/** @typedef {{users: number, sessions: number, activeSessions: number, exact: boolean, error: number|null}} Audience */
/** @typedef {{rank: number, eventName?: string, user?: string, count: number}} Ranked */
/** @typedef {{count: number, total: number}} Value */
/** @typedef {{at: string, action: string, eventName: string|null, before: Value|null, after: Value|null}} Correction */
/** @typedef {{day: string, parts: {until: string, counts: Record<string, number>}[], corrections?: Correction[]}} ClosedDay */
/** @typedef {{day: string, hits: number, events: number, parts: number}} DayRow */
/** @typedef {{status: string, reasons: string[], store: string, ack: string, survives: string, staleSeconds: number|null,
 *   spoolBytes: number, lostBatches: number, nodes: number, resetsAt: string, version: string}} Health */

let [skew, limitedUntil] = [0, 0];
/** @type {Set<(refusal: Refusal) => void>} */ const listeners = new Set();

/** What the server, or the way to it, said instead of an answer; status 0 means nobody answered. */
export class Refusal extends Error {
  /** @param {string} method @param {number} status @param {string} message */
  constructor(method, status, message) {
    super(message);
    this.status = status;
    this.needsKey = method === "GET" && (status === 401 || status === 403);
  }
}

/** The server's idea of now, so a wrong local clock does not bend the countdown. */
export const serverNow = () => Date.now() + skew;
/** Milliseconds until this address may ask again. */
export const limitedFor = () => Math.max(0, limitedUntil - Date.now());
/** @param {(refusal: Refusal) => void} listener */
export const onRefusal = (listener) => listeners.add(listener);

/** @param {string} path @param {RequestInit} [init] @returns {Promise<Response>} */
async function ask(path, init = {}) {
  const method = init.method ?? "GET";
  // Asking on would only lengthen the wait.
  if (method === "GET" && limitedFor()) throw new Refusal(method, 429, "Too many requests from this address.");
  const headers = { ...init.headers, ...(key() && { Authorization: `Bearer ${key()}` }) };
  const response = await fetch(path, { ...init, headers }).catch(() => null);
  if (!response) throw new Refusal(method, 0, "The server does not answer.");
  const date = Date.parse(response.headers.get("date") ?? "");
  // The Date header has whole seconds, so a smaller difference means nothing.
  if (Math.abs(date - Date.now()) > 2000) skew = date - Date.now();
  if (response.ok || (path === "/health" && response.status === 503)) return response;
  if (response.status === 429) limitedUntil = Date.now() + 1000 * (Number(response.headers.get("retry-after")) || 1);
  const body = await response.json().catch(() => ({}));
  const words = [body.title ?? `HTTP ${response.status}`, body.detail].filter(Boolean).join(": ");
  const refusal = new Refusal(method, response.status, words);
  for (const listener of listeners) listener(refusal);
  throw refusal;
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<any>} */
const call = async (path, init) => (await ask(path, init)).json().catch(() => ({}));
/** @param {string} name */
const at = (name) => `/event/${encodeURIComponent(name)}`;
/** @param {string} method @param {object} [body] @returns {RequestInit} */
const sending = (method, body) => ({ method, ...(body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) });

/** @returns {Promise<Record<string, number>>} */
export const getEvents = () => call("/events");
/** @param {string} name @returns {Promise<Value>} */
export const getEvent = (name) => call(at(name));
/** @returns {Promise<Health>} */
export const getHealth = () => call("/health");
/** @param {string} name of an event, or "" for all @param {string} step @param {number} points @returns {Promise<{points: Point[]}>} */
export const getSeries = (name, step, points) => call(`${name && at(name)}/series?step=${step}&points=${points}`);
/** @param {string[]} names two or more @returns {Promise<{eventName: string, points: Point[]}[]>} */
export const getSparks = (names) => call(`/series?${new URLSearchParams(names.map((name) => ["event", name]))}`);
/** @param {string} name of an event, or "" for all @returns {Promise<Audience>} */
export const getAudience = (name) => call(`${name && at(name)}/audience?days=1`);
/** @returns {Promise<DayRow[]>} */
export const getHistory = () => call("/history");
/** @param {string} day @returns {Promise<ClosedDay>} */
export const getDay = (day) => call(`/history/${encodeURIComponent(day)}`);
/** @param {string} path */
export const getText = async (path) => (await ask(path)).text();
/** @param {string} window @param {string} event users of this one, or "" for the events @returns {Promise<{rows: Ranked[], partial: boolean}>} */
export async function getLeaderboard(window, event) {
  const response = await ask(`/leaderboard?${new URLSearchParams({ window, limit: "100", ...(event && { event }) })}`);
  return { rows: await response.json(), partial: response.headers.has("tally-partial") };
}
/** @param {string} name */
export const postHit = (name) => call(at(name), { method: "POST" });
/** @param {string} name @param {{count?: number, total?: number}} values */
export const putEvent = (name, values) => call(at(name), sending("PUT", values));
/** @param {string} name */
export const deleteEvent = (name) => call(at(name), sending("DELETE"));
export const postReset = () => call("/reset", sending("POST"));
