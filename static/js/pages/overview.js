// The overview page: the headline, the hits chart, the top ten, and a card for each event.

import { createCardGrid } from "../components/card-grid.js";
import { createEmptyState } from "../components/empty-state.js";
import { createHeadline } from "../components/headline.js";
import { createHitsChart } from "../components/hits-chart.js";
import { createRanking } from "../components/ranking.js";
import { get, getClosedDays } from "../data/api.js";
import { countsOfDay } from "../data/compare-days.js";
import { getNotesOfDay, inOneLine } from "../data/notes.js";
import { csv } from "../lib/csv.js";
import { byId, download } from "../lib/dom.js";
import { countdown, dayEnd, number } from "../lib/format.js";
import { link, navigate } from "../lib/router.js";

const TOP = 10;
const SNAPSHOT_MS = 2000; // The first counts have another order than the snapshot after them, so the cards wait for it.

/** @param {Session} session @returns {Page & {clearFilter: () => void, count: (hits: number) => void, focusCard: (event: string) => boolean}} */
export function createOverview(session) {
  const { counters, now, health } = session;
  /** The query of the address. @type {Record<string, string>} */ let view = {};
  const chart = createHitsChart(byId("hits-chart"), now, changeView);
  const cards = createCardGrid(byId("cards"), session, changeView);
  const headline = createHeadline(byId("today"), {
    rate: "Hits per minute", events: "Events", users: "Unique users", sessions: "Active sessions", reset: "Resets in",
  });
  const ranking = createRanking(byId("top-events"));
  const showEmptyState = createEmptyState(session);
  let cardsDrawn = false;
  let empty = false;
  const hasOrder = () => counters.day !== "" || performance.now() > SNAPSHOT_MS;

  /** Navigates to a changed view. Letters after the first one of a filter add no step to the browser's history. @param {Record<string, string>} change */
  function changeView(change) {
    // The last letters of the filter may not be in the address yet, so read its field.
    const replace = Boolean(view.filter) && "filter" in change;
    navigate(link("overview", "", { ...view, filter: byId("filter").value, ...change }), { replace });
  }

  /** Loads the events of the last day, which stay visible after midnight. @param {{again?: boolean}} [options] */
  async function loadLastDay({ again = false } = {}) {
    const days = await getClosedDays({ again });
    if (!days || (counters.lastDay && counters.lastDay.day === (days[0]?.day ?? ""))) return;
    const day = days[0]?.day ?? "";
    /** @type {ClosedDay|null} */ const found = day ? await get(`/history/${day}`).catch(() => null) : null;
    counters.lastDay = { day, counts: found ? countsOfDay(found) : new Map() };
    session.repaint();
  }

  byId("export").addEventListener("click", async () => {
    const notes = await getNotesOfDay(counters.day).catch(() => []);
    const notesOf = (/** @type {string|null} */ event) => inOneLine(notes.filter((note) => note.event === event));
    const rows = cards.rows().map(({ name, count }) => [name, count, notesOf(name)]);
    const notesOfAll = notesOf(null) ? [["", "", notesOf(null)]] : [];
    download(`tally-${counters.day || "today"}.csv`, csv([["event", "count", "notes"], ...rows, ...notesOfAll]));
  });

  return {
    title: () => "",
    show({ query }) {
      view = Object.fromEntries(query);
      chart.show("", { range: view.range, as: view.as });
      cards.show(view.filter ?? "", view.sort ?? "");
      loadLastDay();
    },
    clearFilter: () => changeView({ filter: "" }),
    count: chart.count,
    focusCard: cards.focus,
    reload() {
      chart.reload();
      headline.reload();
      cards.reload();
      loadLastDay({ again: true });
    },
    paint(dirty, full, animate) {
      // An instance that has counted before is not new, even if today has no hits yet.
      empty = !counters.names.length && counters.lastDay?.day === "";
      byId("overview-body").hidden = empty;
      showEmptyState(empty);
      if (hasOrder()) {
        cards.update(dirty, full || !cardsDrawn, animate);
        cardsDrawn = true;
        byId("cards").removeAttribute("aria-busy");
        byId("export").disabled = false;
      }
      ranking.draw(counters.top(TOP), { total: counters.total, animate });
      headline.count(counters.total, animate);
      headline.set("events", number(counters.names.length));
    },
    tick(synced) {
      const { resetsAt } = counters;
      if (empty) showEmptyState(true); // The server’s health may have arrived.
      const end = health()?.resetsAt;
      headline.set("reset", resetsAt === null ? "–" : countdown(resetsAt - now()), end ? `Today’s counts reset ${dayEnd(end)}` : "");
      chart.tick(synced);
      if (!cardsDrawn && hasOrder()) session.repaint();
      cards.tick();
      if (!synced) return;
      headline.set("rate", chart.rate());
      headline.load();
    },
  };
}
