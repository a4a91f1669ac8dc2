// HTTP client of the API: sends the API key, respects rate limits, and estimates the server's clock.

import { apiKey } from "./prefs.js";

/** The URL of this server without a slash at its end. It has a path if a proxy serves Tally under one. */
export const [SERVER_URL] = import.meta.url.split(/\/static\/(?:v-[0-9a-f]+\/)?js\/data\//);

let clockSkewMs = 0;
let rateLimitedUntil = 0;

/** The server's time in ms, so that a wrong local clock does not bend the countdown. */
export const serverNow = () => Date.now() + clockSkewMs;
/** Milliseconds until this address may send requests again. */
export const rateLimitedForMs = () => Math.max(0, rateLimitedUntil - Date.now());

/** Limits a function to one call in `ms`; `now` skips the limit. @param {number} ms @param {() => void} run */
export function throttle(ms, run) {
  let calledAt = -ms;
  const throttled = () => { if (performance.now() - calledAt >= ms) throttled.now(); };
  throttled.now = () => { calledAt = performance.now(); run(); };
  return throttled;
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<Response>} */
async function request(path, init = {}) {
  if (!init.method && rateLimitedForMs()) throw new Error("Rate limit reached. Try again in a moment."); // More would prolong the limit.
  const headers = { ...(apiKey() && { Authorization: `Bearer ${apiKey()}` }), ...init.headers };
  const response = await fetch(SERVER_URL + path, { ...init, headers, redirect: "error" }).catch(() => { throw new Error("The server is not responding."); });
  const date = Date.parse(response.headers.get("date") ?? "");
  // The Date header has whole seconds, so a smaller difference means nothing.
  if (Math.abs(date - Date.now()) > 2000) clockSkewMs = date - Date.now();
  if (response.ok || (path === "/health" && response.status === 503)) return response;
  if (response.status === 429) rateLimitedUntil = Date.now() + 1000 * (Number(response.headers.get("retry-after")) || 1);
  const { detail = `HTTP ${response.status}` } = await response.json().catch(() => ({}));
  throw new Error(detail);
}

export const getText = async (/** @type {string} */ path) => (await request(path)).text();
/** @param {string} path @returns {Promise<any>} */
export const get = async (path) => (await request(path)).json();
/** @param {string} method @param {string} path @param {object} [body] @returns {Promise<any>} */
export const send = async (method, path, body) =>
  (await request(path, { method, ...(body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) })).json().catch(() => ({}));
/** @param {string} name an event name, or "" for all events */
export const eventPath = (name) => name && `/event/${encodeURIComponent(name)}`;
/** @param {string} name an event name, or "" for all events @param {string} step @param {number} points @param {string} [until] @returns {Promise<{points: Point[]}>} */
export const getSeries = (name, step, points, until = "") => get(`${eventPath(name)}/series?step=${step}&points=${points}${until && `&until=${until}`}`);
/** Returns what an API key may do. @param {string} key "" for none @returns {Promise<KeyPermissions>} */
export async function getPermissions(key) {
  // Another text cannot be sent in a header.
  if (!/^[!-~]*$/.test(key)) return { read: false, write: false, admin: false };
  return (await request("/permissions", { headers: key ? { Authorization: `Bearer ${key}` } : {} })).json();
}
/** @type {Promise<DayRow[]|null>|undefined} */ let closedDaysRequest;
/** Returns the closed days, newest first, or null if they cannot be loaded. They are requested once. @param {{again?: boolean}} [options] */
export function getClosedDays({ again = false } = {}) {
  if (again) closedDaysRequest = undefined;
  return (closedDaysRequest ??= get("/history").catch(() => { closedDaysRequest = undefined; return null; }));
}
/** Returns the first closed day (ISO 8601) that this server has counts of, or "" if there is none or it is unknown. */
export const getFirstDay = async () => (await getClosedDays())?.at(-1)?.day ?? "";
/** @param {string} window @param {number} limit @param {string} [event] ranks the users of this event @returns {Promise<{rows: Ranked[], partial: boolean}>} */
export async function getLeaderboard(window, limit, event) {
  const response = await request(`/leaderboard?${new URLSearchParams({ window, limit: String(limit), ...(event && { event }) })}`);
  return { rows: await response.json(), partial: response.headers.has("tally-partial") };
}
