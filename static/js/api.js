// @ts-check
// The three HTTP calls the page makes, and the server's clock.

let skew = 0;

/** The server's idea of now, so a wrong local clock does not bend the countdown. */
export const serverNow = () => Date.now() + skew;

/** @param {string} path @param {RequestInit} [init] @returns {Promise<any>} */
async function call(path, init) {
  const response = await fetch(path, init);
  const date = Date.parse(response.headers.get("date") ?? "");
  // The Date header has whole seconds, so a smaller difference means nothing.
  if (Math.abs(date - Date.now()) > 2000) skew = date - Date.now();
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Error([body.title ?? `HTTP ${response.status}`, body.detail].filter(Boolean).join(": "));
}

/** @returns {Promise<Record<string, number>>} */
export const getEvents = () => call("/events");
/** @returns {Promise<{points: {start: string, count: number}[]}>} */
export const getSeries = () => call("/series?step=minute&points=60");
/** @param {string} name */
export const postHit = (name) => call(`/event/${encodeURIComponent(name)}`, { method: "POST" });
