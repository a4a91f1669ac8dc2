// The leaderboard: events, or the users of one, within a time that the reader chooses.

import { createRanking } from "../components/ranking.js";
import { getLeaderboard, paced } from "../data/api.js";
import { byId, h, say, segments } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { go, link } from "../lib/router.js";

const SIZE = 100;
const ASK_MS = 5000;
/** @type {Record<string, string>} */
const WINDOWS = { today: "Today", "1h": "Last hour", "7d": "7 days", total: "All time" };

/** @returns {Page} */
export function createBoard() {
  const [list, note, title] = ["board-list", "board-note", "board-title"].map(byId);
  const ranking = createRanking(list, { parts: true });
  let [window, event] = ["today", ""];
  const mark = segments(byId("board-window"), "window", WINDOWS, (value) => go(address(value, event)));
  const address = (/** @type {string} */ of, /** @type {string} */ users) =>
    link("leaderboard", "", { window: of === "today" ? "" : of, event: users });

  const load = paced(ASK_MS, async () => {
    const of = window + event;
    const found = await getLeaderboard(window, SIZE, event).catch((/** @type {Error} */ error) => error);
    if (of !== window + event) return;
    if (found instanceof Error) return say(note, found.message);
    const rows = found.rows.map(({ user, eventName, count }) => ({ name: user ?? eventName ?? "", count }));
    ranking.draw(rows, { all: rows.reduce((all, { count }) => all + count, 0), linked: !event });
    say(note, found.partial ? "Ranked among the first 10,000 users that were seen." : rows.length === SIZE ? `The first ${number(SIZE)}; parts are of these.` : rows.length ? "" : "Nobody here yet.");
  });

  return {
    title: () => "Leaderboard",
    show({ query }) {
      const asks = query.get("window") ?? "today";
      [window, event] = [Object.hasOwn(WINDOWS, asks) ? asks : "today", query.get("event") ?? ""];
      mark(window);
      title.replaceChildren(...(event ? ["Users of ", h("bdi", { dir: "auto" }, event)] : ["Events"]));
      byId("board-all").hidden = !event;
      byId("board-all").href = address(window, "");
      say(note, "Loading");
      ranking.clear();
      load.now();
    },
    renew: load.now,
    tick: load,
  };
}
