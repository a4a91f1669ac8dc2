// HTTP: what the pages ask, the key they ask with, and the server's clock.

import { key } from "./prefs.js";

let [skew, limitedUntil] = [0, 0];

/** The server's idea of now, so a wrong local clock does not bend the countdown. */
export const serverNow = () => Date.now() + skew;
/** Milliseconds until this address may ask again. */
export const limitedFor = () => Math.max(0, limitedUntil - Date.now());

/** A question that is put again only after so long, or at once by `now`. @param {number} ms @param {() => void} put */
export function paced(ms, put) {
  let last = -ms;
  const question = () => { if (performance.now() - last >= ms) question.now(); };
  question.now = () => {
    last = performance.now();
    put();
  };
  return question;
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<Response>} */
async function ask(path, init = {}) {
  // Asking on would only lengthen the wait.
  if (!init.method && limitedFor()) throw new Error("Too many requests from this address.");
  const headers = { ...init.headers, ...(key() && { Authorization: `Bearer ${key()}` }) };
  const response = await fetch(path, { ...init, headers }).catch(() => { throw new Error("The server does not answer."); });
  const date = Date.parse(response.headers.get("date") ?? "");
  // The Date header has whole seconds, so a smaller difference means nothing.
  if (Math.abs(date - Date.now()) > 2000) skew = date - Date.now();
  if (response.ok || (path === "/health" && response.status === 503)) return response;
  if (response.status === 429) limitedUntil = Date.now() + 1000 * (Number(response.headers.get("retry-after")) || 1);
  const { title = `HTTP ${response.status}`, detail } = await response.json().catch(() => ({}));
  throw new Error(detail ? `${title}: ${detail}` : title);
}

/** @param {string} path */
export const getText = async (path) => (await ask(path)).text();
/** @param {string} path @returns {Promise<any>} */
export const get = async (path) => (await ask(path)).json();
/** @param {string} method @param {string} path @param {object} [body] @returns {Promise<any>} */
export const send = async (method, path, body) =>
  (await ask(path, { method, ...(body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) })).json().catch(() => ({}));
/** @param {string} name of an event, or "" for all of them */
export const pathOf = (name) => name && `/event/${encodeURIComponent(name)}`;
/** @param {string} name likewise @param {string} step @param {number} points @returns {Promise<{points: Point[]}>} */
export const getSeries = (name, step, points) => get(`${pathOf(name)}/series?step=${step}&points=${points}`);
/** @param {string} window @param {number} limit @param {string} [event] users of this one @returns {Promise<{rows: Ranked[], partial: boolean}>} */
export async function getLeaderboard(window, limit, event) {
  const response = await ask(`/leaderboard?${new URLSearchParams({ window, limit: String(limit), ...(event && { event }) })}`);
  return { rows: await response.json(), partial: response.headers.has("tally-partial") };
}
