// The last hour of the events whose cards are in sight: asked for together, then carried on by the live counts.

import { get } from "../data/api.js";
import { say } from "../lib/dom.js";
import { number } from "../lib/format.js";

const RENEW_MS = 60_000; // live counts carry a floor on; a reload corrects it
const ASK_MS = 1500; // between two questions, so that scrolling through thousands of cards is no flood
const AT_ONCE = 50;
const QUERY_MAX = 6000; // bytes of names in one address, well within what servers and proxies take

/** @param {Session} session */
export function createSparks({ counters, now }) {
  let asked = -ASK_MS;

  /** @param {Card[]} cards */
  function draw(cards) {
    for (const card of cards.filter(({ series }) => series.points.length)) {
      const count = counters.counts[card.index];
      card.series.add(count - card.followed, now());
      card.followed = count;
      const path = floorPath(card.series);
      if (card.floor.getAttribute("d") !== path) card.floor.setAttribute("d", path);
      say(card.rate, `${number(card.series.perMinute(now()) ?? 0)} / min`);
    }
  }

  /** What is missing or old of these, unless something was just asked for. @param {Card[]} cards */
  async function load(cards) {
    const at = performance.now();
    let bytes = 0;
    const some = cards.filter((card) => at - card.asked > RENEW_MS).slice(0, AT_ONCE)
      .filter(({ name }) => (bytes += encodeURIComponent(name).length + 7) < QUERY_MAX);
    if (!some.length || at - asked < ASK_MS) return;
    asked = at;
    for (const card of some) card.asked = at;
    const counts = some.map((card) => counters.counts[card.index]);
    const found = await get(`/series?${new URLSearchParams(some.map(({ name }) => ["event", name]))}`).catch(() => []);
    // A hit meanwhile is seen twice rather than never, for a minute.
    [found].flat().forEach(({ points }, i) => Object.assign(some[i], { followed: counts[i] }).series.load(points));
    draw(some);
  }

  return { draw, load };
}

/** The last hour as a floor of posts, a minute each, in a 240 x 24 drawing. @param {import("../data/series.js").Series} series */
export function floorPath({ points }) {
  const most = Math.max(1, ...points.map(({ count }) => count));
  return points.map(({ count }, i) => (count ? `M${i * 4 + 2} 26V${(23 - 21 * (count / most)).toFixed(1)}` : "")).join("");
}
