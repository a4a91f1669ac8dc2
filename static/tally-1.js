// Tally for any web page: <script src="https://tally.example/static/tally-1.js" defer>
//   tally("signup")                                  counts a hit; the promise resolves to Tally's response
//   tally("signup", { by: 3, user: "u", session: "s" })
//   <span data-tally-count="signup">                 shows today's count, live
//   <button data-tally-hit="clicked">                counts its clicks
// After you add such spans to a page, call tally.watch().
// With import() or in a bundle, name the server: <html data-tally-server="https://tally.example">
(() => {
  const UNKNOWN = 'Tally: unknown server; nothing is counted. Add data-tally-server="https://tally.example" to <html>.';
  if (globalThis.tally?.server) return globalThis.tally.watch(); // the page includes this script twice
  const base = findServer();
  const eventUrl = (event) => new URL(`event/${encodeURIComponent(event)}`, base);
  const { format } = new Intl.NumberFormat();
  const countSpans = () => [...document.querySelectorAll("[data-tally-count]")];
  const eventOf = (span) => span.dataset.tallyCount.normalize();

  /** Returns the server's URL: the one that the page names, or that of /static/tally-1.js. The URL of a copy is not used. */
  function findServer() {
    const named = document.querySelector("html[data-tally-server], script[data-tally-server]")?.dataset.tallyServer;
    const own = /^[^?#]*\/static\/tally-1\.js(?![^?#])/;
    const script = [document.currentScript, ...document.scripts].find((script) => own.test(script?.src));
    try {
      return named === undefined ? new URL("..", script.src) : new URL(named.replace(/\/?$/, "/"), document.baseURI);
    } catch {
      console.error(UNKNOWN);
    }
  }

  let warned;

  /** Logs an error, once. */
  function warn({ detail = `no response. Is ${location.origin} in TALLY_ALLOWED_ORIGINS?` }) {
    if (!warned) console.warn("Tally:", detail);
    warned = true;
  }

  /** Counts a hit. It retries with one Idempotency-Key, so the hit is counted once. */
  async function tally(event, hit) {
    if (!base) throw new Error(UNKNOWN);
    const headers = { "Idempotency-Key": crypto.getRandomValues(new Uint32Array(4)).join("-") };
    const request = { method: "POST", keepalive: true, credentials: "omit", headers, body: hit && JSON.stringify(hit) };
    for (let pauseMs = 500; ; pauseMs *= 2) {
      const response = await fetch(eventUrl(event), request).catch(warn);
      const body = await response?.json().catch(() => null);
      if (response?.ok && body) return body;
      const retryAfterMs = 1000 * (response?.headers.get("Retry-After") ?? 0);
      const rejected = response && response.status < 500 && response.status !== 429;
      if (rejected || pauseMs > 30_000 || retryAfterMs > 60_000) throw new Error(body?.detail ?? "no response; the hit may not have been counted");
      await new Promise((resolve) => setTimeout(resolve, Math.max(pauseMs, retryAfterMs) + Math.random() * pauseMs));
    }
  }

  let source;
  let watchedQuery = "";

  function showCount(event, count) {
    for (const span of countSpans()) if (event === undefined || eventOf(span) === event) span.textContent = format(count);
  }

  /** Opens one stream for all spans on the page. */
  tally.watch = () => {
    const events = [...new Set(countSpans().map(eventOf))];
    const query = String(new URLSearchParams(events.map((event) => ["event", event])));
    if (!base || query === watchedQuery) return;
    watchedQuery = query;
    source?.close();
    if (!query) return;
    const stream = (source = new EventSource(new URL(`stream?${query}`, base)));
    stream.addEventListener("update", ({ data }) => {
      const { eventName, count } = JSON.parse(data);
      showCount(eventName, count);
    });
    stream.addEventListener("reset", () => showCount(undefined, 0));
    stream.onerror = () => {
      // Unless the stream is closed, the browser reconnects.
      if (stream.readyState !== EventSource.CLOSED || stream !== source) return;
      for (const event of events) {
        fetch(eventUrl(event)).then((response) => response.json()).then((body) => (body.count >= 0 ? showCount(event, body.count) : warn(body))).catch(warn);
      }
      watchedQuery = "";
      setTimeout(tally.watch, 20_000 + Math.random() * 20_000);
    };
  };

  tally.server = base?.href;
  globalThis.tally = tally;
  if (!base) return;
  document.addEventListener("click", ({ target }) => {
    const event = target.closest?.("[data-tally-hit]")?.dataset.tallyHit;
    if (event) tally(event).catch((error) => console.error(`Tally: ${event} was not counted: ${error.message}`));
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", tally.watch);
  else tally.watch();
})();
