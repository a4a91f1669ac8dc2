// The leaderboard page: the top events, or the top users of one event, in a chosen time window.

import { createRanking } from "../components/ranking.js";
import { getLeaderboard, throttle } from "../data/api.js";
import { bdi, byId, createSegmentedControl, setText } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { link, navigate } from "../lib/router.js";

const SIZE = 100;
const RELOAD_MS = 5000;
/** @type {Record<string, string>} */ const WINDOWS = { today: "Today", "1h": "Last hour", "7d": "7 days", total: "All time" };

/** @returns {Page} */
export function createLeaderboard() {
  const note = byId("leaderboard-note");
  const ranking = createRanking(byId("leaderboard-list"), { parts: true });
  let timeWindow = "today";
  let event = "";
  const selectWindow = createSegmentedControl(byId("leaderboard-window"), "window", WINDOWS, (value) => navigate(address(value, event)));
  const address = (/** @type {string} */ value, /** @type {string} */ usersOf) =>
    link("leaderboard", "", { window: value === "today" ? "" : value, event: usersOf });

  const load = throttle(RELOAD_MS, async () => {
    const requestedRanking = timeWindow + event;
    const result = await getLeaderboard(timeWindow, SIZE, event).catch((/** @type {Error} */ error) => error);
    if (requestedRanking !== timeWindow + event) return;
    if (result instanceof Error) return setText(note, result.message);
    const rows = result.rows.map(({ user, eventName, count }) => ({ name: user ?? eventName ?? "", count }));
    ranking.draw(rows, { total: rows.reduce((sum, { count }) => sum + count, 0), linked: !event });
    setText(note, result.partial ? "Only the first 10,000 users are ranked." : rows.length === SIZE ? `Top ${number(SIZE)}. Percentages are shares of these ${number(SIZE)}.` : rows.length ? "" : "No hits in this period.");
  });

  return {
    title: () => "Leaderboard",
    show({ query }) {
      const wanted = query.get("window") ?? "today";
      timeWindow = Object.hasOwn(WINDOWS, wanted) ? wanted : "today";
      event = query.get("event") ?? "";
      selectWindow(timeWindow);
      byId("leaderboard-title").replaceChildren(...(event ? ["Top users: ", bdi(event)] : ["Events"]));
      byId("leaderboard-back").hidden = !event;
      byId("leaderboard-back").href = address(timeWindow, "");
      setText(note, "Loading…");
      ranking.clear();
      load.now();
    },
    reload: load.now,
    tick: load,
  };
}
