// The leaderboard page: the top events, those that changed most, or the top users of one event, in a chosen time window.

import { createRanking } from "../components/ranking.js";
import { getLeaderboard, throttle } from "../data/api.js";
import { MOVERS } from "../data/movers.js";
import { bdi, byId, createSegmentedControl, setText } from "../lib/dom.js";
import { number, time } from "../lib/format.js";
import { link, navigate } from "../lib/router.js";

const SIZE = 100;
const RELOAD_MS = 5000;
/** @type {Record<string, string>} */ const WINDOWS = { today: "Today", "1h": "Last hour", "7d": "7 days", total: "All time" };
/** @type {Record<string, string>} */ const ORDERS = { count: "Top", change: "Movers" };
/** @type {Record<string, string>} */ const EARLIER = { today: "yesterday", "7d": "the 7 days before" };

/** @param {Session} session @returns {Page} */
export function createPage({ now }) {
  const note = byId("leaderboard-note");
  const ranking = createRanking(byId("leaderboard-list"), { parts: true });
  const selectWindow = createSegmentedControl(byId("leaderboard-window"), "window", WINDOWS, (value) => navigate(address({ window: value })));
  const selectOrder = createSegmentedControl(byId("leaderboard-order"), "order", ORDERS, (value) => navigate(address({ order: value })));
  let timeWindow = "today";
  let event = "";
  /** What the events of the window are compared with, or null. @type {Movers|null} */ let movers = null;
  let order = "count";
  const view = () => [timeWindow, order, event].join(" ");

  function address(/** @type {Record<string, string>} */ change) {
    const next = { window: timeWindow, order, event, ...change };
    return link("leaderboard", "", { ...next, window: next.window === "today" ? "" : next.window, order: next.order === "count" ? "" : next.order });
  }

  const load = throttle(RELOAD_MS, async () => {
    const requestedView = view();
    const loading = movers?.load(now());
    if (order === "change") {
      await loading;
      if (requestedView === view()) drawMovers();
      return;
    }
    loading?.then((isNew) => { if (isNew && requestedView === view()) load.now(); });
    const result = await getLeaderboard(timeWindow, SIZE, event).catch((/** @type {Error} */ error) => error);
    if (requestedView !== view()) return;
    if (result instanceof Error) return setText(note, result.message);
    const rows = result.rows.map(({ user, eventName, count }) => ({ name: user ?? eventName ?? "", count }));
    ranking.draw(rows, { total: rows.reduce((sum, { count }) => sum + count, 0), linked: !event, movers });
    setText(note, result.partial ? "Only the first 10,000 users are ranked." : rows.length === SIZE ? `Top ${number(SIZE)}. Percentages are shares of these ${number(SIZE)}.` : rows.length ? "" : "No hits in this period.");
  });

  function drawMovers() {
    const { byName, until } = /** @type {Movers} */ (movers);
    const rows = [...byName.values()].slice(0, SIZE).map(({ eventName, count }) => ({ name: eventName, count }));
    ranking.draw(rows, { total: 0, movers, byChange: true });
    setText(note, rows.length ? `The largest changes until ${time(Date.parse(until))}, compared with ${EARLIER[timeWindow]} until the same time.`
      : until ? "Nothing to compare with yet." : "Could not load the changes.");
  }

  return {
    title: () => "Leaderboard",
    show({ query }) {
      const wanted = query.get("window") ?? "today";
      timeWindow = Object.hasOwn(WINDOWS, wanted) ? wanted : "today";
      event = query.get("event") ?? "";
      movers = event ? null : MOVERS[timeWindow] ?? null;
      order = movers && query.get("order") === "change" ? "change" : "count";
      selectWindow(timeWindow);
      selectOrder(order);
      byId("leaderboard-order").hidden = !movers;
      byId("leaderboard-title").replaceChildren(...(event ? ["Top users: ", bdi(event)] : ["Events"]));
      byId("leaderboard-back").hidden = !event;
      byId("leaderboard-back").href = address({ event: "" });
      setText(note, "Loading…");
      ranking.clear();
      load.now();
    },
    reload: load.now,
    tick: load,
  };
}
