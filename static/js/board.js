// @ts-check
// The leaderboard: events, or the users of one, within a time that the reader chooses.

import { getLeaderboard } from "./api.js";
import { byId, h, segments } from "./dom.js";
import { number, plural } from "./format.js";
import { createRanking } from "./ranking.js";
import { link } from "./router.js";

const SIZE = 100;
const ASK_MS = 5000; // today's events move live, everything else by asking
const SUGGESTED = 20;
/** @type {Record<string, string>} */
const WINDOWS = { today: "Today", "1h": "Last hour", "7d": "7 days", total: "All time" };

/** @param {ReturnType<typeof import("./session.js").openSession>} session */
export function createBoard({ counters }) {
  const [list, note, field, title] = ["board-list", "board-note", "board-event", "board-title"].map(byId);
  const ranking = createRanking(list, { parts: true });
  let [window, event, asked] = ["today", "", -ASK_MS];
  const mark = segments(byId("board-window"), "window", WINDOWS, (value) => go(value, event));
  const go = (/** @type {string} */ value, /** @type {string} */ of) =>
    location.replace(link("leaderboard", "", { window: value === "today" ? "" : value, event: of }));
  const live = () => window === "today" && !event;

  async function load() {
    if (live() || performance.now() - asked < ASK_MS) return;
    asked = performance.now();
    const of = window + event;
    const { rows, partial, error } = await getLeaderboard(window, event).then((found) => ({ ...found, error: null }),
      (reason) => ({ rows: null, partial: false, error: reason }));
    if (of !== window + event) return;
    // A server that does not rank users answers with events.
    const known = rows && (!event || rows.every((row) => row.user !== undefined));
    note.textContent = error ? `Nothing to show. ${error.message}` : !known ? "This server does not rank users."
      : partial ? "Ranked among the first 10,000 users that were seen." : rows.length ? "" : "Nobody here yet.";
    if (known) ranking.draw(rows.map((row) => ({ name: row.user ?? row.eventName ?? "", count: row.count })), { all: sum(rows), linked: !event });
  }

  const sum = (/** @type {{count: number}[]} */ rows) => rows.reduce((all, { count }) => all + count, 0);

  byId("board-form").addEventListener("submit", (/** @type {Event} */ submitted) => {
    submitted.preventDefault();
    go(window, field.value.trim());
  });
  field.addEventListener("input", () => {
    const part = field.value.trim().toLowerCase();
    const some = counters.names.filter((name) => part && name.toLowerCase().includes(part)).slice(0, SUGGESTED);
    byId("board-events").replaceChildren(...some.map((value) => h("option", { value })));
  });

  return {
    title: () => "Leaderboard",
    /** @param {import("./router.js").Route} route */
    show({ query }) {
      const asks = query.get("window") ?? "today";
      [window, event, asked] = [Object.hasOwn(WINDOWS, asks) ? asks : "today", query.get("event") ?? "", -ASK_MS];
      mark(window);
      field.value = event;
      title.replaceChildren(...(event ? ["Users of ", h("bdi", { dir: "auto" }, event)] : ["Events"]));
      byId("board-all").hidden = !event;
      byId("board-all").href = link("leaderboard", "", { window: window === "today" ? "" : window });
      note.textContent = live() ? "" : "Loading";
      ranking.clear();
      load();
    },
    hide() {},
    renew: () => { asked = -ASK_MS; load(); },
    paint(/** @type {Set<number>} */ _, /** @type {boolean} */ __, /** @type {boolean} */ lively) {
      if (!live()) return;
      ranking.draw(counters.top(SIZE), { all: counters.total, lively });
      note.textContent = counters.names.length > SIZE ? `The first ${number(SIZE)} of ${plural(counters.names.length, "event")}.`
        : counters.names.length ? "" : "Nothing counted yet today.";
    },
    tick: () => { load(); },
  };
}
