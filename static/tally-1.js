// Tally for any page, as a classic script: <script src="https://tally.example/static/tally-1.js" defer></script>
//   tally("signup")                                  counts a hit, and promises what it made of the count
//   tally("signup", { by: 3, user: "u", session: "s" })
//   <span data-tally-count="signup">                 shows today's count, live
//   <button data-tally-hit="clicked">                counts its clicks
// After adding such spans to a page: tally.watch()
(() => {
  const base = new URL("..", document.currentScript.src);
  const path = (event) => new URL(`event/${encodeURIComponent(event)}`, base);
  const whole = new Intl.NumberFormat();
  const spans = () => [...document.querySelectorAll("[data-tally-count]")];
  const name = (span) => span.dataset.tallyCount.normalize();

  /** Sent again until it is known to be counted; the key sees to it that it is counted once. */
  async function tally(event, hit) {
    const headers = { "Idempotency-Key": crypto.getRandomValues(new Uint32Array(4)).join("-") };
    const request = { method: "POST", keepalive: true, credentials: "omit", headers, body: hit && JSON.stringify(hit) };
    for (let pause = 500; ; pause *= 2) {
      const answer = await fetch(path(event), request).catch(() => null);
      const body = await answer?.json().catch(() => null);
      if (answer?.ok && body) return body;
      const after = 1000 * (answer?.headers.get("Retry-After") ?? 0);
      const refused = answer && answer.status < 500 && answer.status !== 429;
      if (refused || pause > 30_000 || after > 60_000) throw new Error(body?.detail ?? "Tally did not answer");
      await new Promise((resolve) => setTimeout(resolve, Math.max(pause, after) + Math.random() * pause));
    }
  }

  let source;
  let watched = "";

  function show(event, count) {
    for (const span of spans()) if (event === undefined || name(span) === event) span.textContent = whole.format(count);
  }

  /** One connection for all the spans there are now. */
  tally.watch = () => {
    const names = [...new Set(spans().map(name))];
    const query = String(new URLSearchParams(names.map((event) => ["event", event])));
    if (query === watched) return;
    watched = query;
    source?.close();
    if (!query) return;
    const opened = (source = new EventSource(new URL(`stream?${query}`, base)));
    opened.addEventListener("update", ({ data }) => {
      const { eventName, count } = JSON.parse(data);
      show(eventName, count);
    });
    opened.addEventListener("reset", () => show(undefined, 0));
    opened.onerror = () => {
      if (opened.readyState !== EventSource.CLOSED || opened !== source) return; // it comes again by itself
      for (const event of names) {
        fetch(path(event)).then((answer) => answer.json()).then(({ count }) => count >= 0 && show(event, count), () => {});
      }
      watched = "";
      setTimeout(tally.watch, 20_000 + Math.random() * 20_000);
    };
  };

  document.addEventListener("click", ({ target }) => {
    const event = target.closest?.("[data-tally-hit]")?.dataset.tallyHit;
    if (event) tally(event).catch(() => {});
  });
  globalThis.tally = tally;
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", tally.watch);
  else tally.watch();
})();
