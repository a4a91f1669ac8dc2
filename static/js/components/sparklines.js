// The last hour of the events whose cards are visible: loaded together, then continued with live counts.

import { get } from "../data/api.js";
import { setText } from "../lib/dom.js";
import { number } from "../lib/format.js";

const RELOAD_MS = 60_000; // Live counts extend a sparkline; a reload corrects it.
const REQUEST_INTERVAL_MS = 1500; // Scrolling through thousands of cards must not flood the server.
const EVENTS_PER_REQUEST = 50;
const QUERY_MAX = 6000; // Bytes of names in one URL, well within the limits of servers and proxies.

export function createSparklines(/** @type {Session} */ { counters, now }) {
  let requestedAt = -REQUEST_INTERVAL_MS;

  function draw(/** @type {Card[]} */ cards) {
    for (const card of cards.filter(({ series }) => series.points.length)) {
      const received = counters.received[card.index] ?? 0; // A card without a hit today has a negative index.
      card.series.add(received - card.received, now());
      card.received = received;
      const path = sparklinePath(card.series);
      if (card.sparkline.getAttribute("d") !== path) card.sparkline.setAttribute("d", path);
      setText(card.rate, card.note || `${number(card.series.perMinute(now()) ?? 0)} / min`);
    }
  }

  /** Loads the missing and old series of some cards, unless a request was just sent. @param {Card[]} cards */
  async function load(cards) {
    const at = performance.now();
    let bytes = 0;
    const batch = cards.filter((card) => at - card.seriesRequestedAt > RELOAD_MS).slice(0, EVENTS_PER_REQUEST)
      .filter(({ name }) => (bytes += encodeURIComponent(name).length + 7) < QUERY_MAX);
    if (!batch.length || at - requestedAt < REQUEST_INTERVAL_MS) return;
    requestedAt = at;
    for (const card of batch) card.seriesRequestedAt = at;
    const received = batch.map((card) => counters.received[card.index] ?? 0);
    const found = await get(`/series?${new URLSearchParams(batch.map(({ name }) => ["event", name]))}`).catch(() => []);
    // A hit that arrives during the request is shown twice for a minute, rather than never.
    [found].flat().forEach(({ points }, i) => Object.assign(batch[i], { received: received[i] }).series.load(points));
    draw(batch);
  }

  return { draw, load };
}

/** Returns the SVG path of the last hour, one bar a minute, in a drawing of 240 x 24. @param {import("../data/series.js").Series} series */
export function sparklinePath({ points }) {
  const max = Math.max(1, ...points.map(({ count }) => count));
  return points.map(({ count }, i) => (count ? `M${i * 4 + 2} 26V${(23 - 21 * (count / max)).toFixed(1)}` : "")).join("");
}
