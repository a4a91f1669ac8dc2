// The leaderboard page: the top events, those that changed most, or the top users of one event, in a chosen time window.

import { createRanking } from "../components/ranking.js";
import { getLeaderboard, throttle } from "../data/api.js";
import { HITS_MIN, MOVERS } from "../data/movers.js";
import { dayOf } from "../data/ranges.js";
import { bdi, byId, createSegmentedControl, h } from "../lib/dom.js";
import { number, shortDate, time } from "../lib/format.js";
import { link, navigate } from "../lib/router.js";

const SIZE = 100;
const RELOAD_MS = 5000;
const DAY_MS = 86_400_000;
/** @type {Record<string, string>} */ const WINDOWS = { today: "Today", "1h": "Last hour", "7d": "7 days", total: "All time" };
/** @type {Record<string, string>} */ const ORDERS = { count: "Top", change: "Movers", percent: "Movers by %" };

/** Names the two periods that are compared. @param {string} columns whose numbers are of these periods @param {Movers} movers */
function periodsText(columns, { window, until, byName }) {
  if (!byName.size) return "";
  const hour = `until ${time(Date.parse(until))}`;
  const day = (/** @type {number} */ daysAgo) => shortDate(dayOf(Date.parse(until.slice(0, 10)) - daysAgo * DAY_MS));
  const [now, before] = window === "today" ? ["today", "yesterday"] : [`${day(6)} – ${day(0)}`, `${day(13)} – ${day(7)}`];
  return `${columns}: ${now} ${hour}, compared with ${before} ${hour}.`;
}

/** @param {Session} session @returns {Page} */
export function createPage({ now }) {
  const note = byId("leaderboard-note");
  const back = byId("leaderboard-back");
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
    if (order !== "count") {
      await loading;
      if (requestedView === view()) drawMovers();
      return;
    }
    loading?.then((isNew) => { if (isNew && requestedView === view()) load.now(); });
    const result = await getLeaderboard(timeWindow, SIZE, event).catch((/** @type {Error} */ error) => error);
    if (requestedView !== view()) return;
    if (result instanceof Error) return showNote(result.message);
    const rows = result.rows.map(({ user, eventName, count }) => ({ name: user ?? eventName ?? "", count }));
    ranking.draw(rows, { total: rows.reduce((sum, { count }) => sum + count, 0), linked: !event, movers });
    const noHits = event ? "No hits in this period name a user." : "No hits in this period.";
    const ranked = event ? `Only hits that name a user are ranked${result.partial ? ", and only the first 10,000 users" : ""}.` : "";
    const isFull = rows.length === SIZE;
    showNote(!rows.length ? noHits : [ranked, isFull ? `Top ${number(SIZE)}.` : ""].join(" ").trim(),
      isFull ? ` Percentages are shares of these ${number(SIZE)}.` : "", movers ? ` ${periodsText("Changes", movers)}` : "");
  });

  /** Shows sentences. The style sheet hides those about percentages on a narrow screen, which has none. @param {string} text */
  function showNote(text, aboutParts = "", more = "") {
    if (note.textContent !== text + aboutParts + more) note.replaceChildren(text, ...(aboutParts ? [h("span", { className: "about-parts" }, aboutParts)] : []), more);
  }

  /** Names the columns. */
  function drawHead() {
    const labels = { name: event ? "User" : "Event", change: "", ...(movers && { delta: "Change" }), part: order === "count" ? "Share" : "", count: "Hits" };
    byId("leaderboard-head").replaceChildren(...Object.entries(labels).map(([className, label]) => h("span", { className }, label)));
    byId("leaderboard-list").dataset.order = order;
  }

  function drawMovers() {
    const shown = /** @type {Movers} */ (movers);
    const byPercent = order === "percent";
    const sizeOf = (/** @type {Row} */ { name, count }) => Math.sign(count - (shown.byName.get(name)?.previous ?? 0)) * (byPercent ? shown.partOf(name) : shown.changeOf(name));
    const rows = (byPercent ? shown.byPart() : [...shown.byName.values()]).slice(0, SIZE).map(({ eventName, count }) => ({ name: eventName, count }));
    ranking.draw(rows, { total: 0, movers, sizeOf });
    const hint = byPercent ? ` Only events with at least ${HITS_MIN} hits in one of them.` : "";
    showNote(shown.byName.size ? `${periodsText("Hits and changes", shown)}${hint}` : shown.until ? "Nothing to compare with yet." : "Could not load the changes.");
  }

  return {
    title: () => (event ? `Top users: ${event}` : "Leaderboard"),
    show({ query }) {
      const wanted = query.get("window") ?? "today";
      timeWindow = Object.hasOwn(WINDOWS, wanted) ? wanted : "today";
      event = query.get("event") ?? "";
      movers = event ? null : MOVERS[timeWindow] ?? null;
      const wantedOrder = query.get("order") ?? "";
      order = movers && Object.hasOwn(ORDERS, wantedOrder) ? wantedOrder : "count";
      selectWindow(timeWindow);
      selectOrder(order);
      byId("leaderboard-order").hidden = !movers;
      byId("leaderboard-heading").replaceChildren(...(event ? ["Top users: ", bdi(event)] : ["Leaderboard"]));
      byId("leaderboard-title").textContent = event ? "Users" : "Events";
      back.hidden = !event;
      back.replaceChildren(h("a", { href: link("event", event) }, "Back to ", bdi(event)));
      drawHead();
      showNote("Loading…");
      ranking.clear();
      load.now();
    },
    reload: load.now,
    tick: load,
  };
}
