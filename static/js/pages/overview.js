// The first page: the headline, one chart, the top ten, and a card for each event.

import { createCards } from "../components/card-grid.js";
import { createEmpty } from "../components/empty-state.js";
import { createHeadline } from "../components/headline.js";
import { createHits } from "../components/hits-chart.js";
import { createRanking } from "../components/ranking.js";
import { csv } from "../lib/csv.js";
import { byId, download } from "../lib/dom.js";
import { countdown, dayEnd, number } from "../lib/format.js";
import { go, link } from "../lib/router.js";

const TOP = 10;

/** @param {Session} session @returns {Page & {clearFilter: () => void, count: (hits: number) => void}} */
export function createOverview(session) {
  const { counters, now, health } = session;
  /** @type {Record<string, string>} what the address says */ let view = {};
  const hits = createHits(byId("hits-chart"), now, (range) => choose({ range }));
  const cards = createCards(byId("cards"), session, choose);
  const headline = createHeadline(byId("today"), {
    rate: "Hits per minute", events: "Events", users: "Unique users", sessions: "Active sessions", reset: "Reset in",
  });
  const ranking = createRanking(byId("leaderboard"));
  const showEmpty = createEmpty(session.load);

  /** Each choice is a step that Back takes back, but not each letter of a filter; the last ones may not be in the address yet. @param {Record<string, string>} change */
  function choose(change) {
    go(link("overview", "", { ...view, filter: byId("filter").value, ...change }), !(view.filter && "filter" in change));
  }

  byId("export").addEventListener("click", () => {
    download("tally-today.csv", csv([["event", "count"], ...counters.names.map((name, i) => [name, counters.counts[i]])]));
  });

  return {
    title: () => "",
    show({ query }) {
      view = Object.fromEntries(query);
      hits.show("", view.range);
      cards.show(view.filter ?? "", view.sort ?? "");
    },
    clearFilter: () => choose({ filter: "" }),
    count: hits.count,
    renew: hits.renew,
    paint(dirty, remade, lively) {
      const any = counters.names.length > 0;
      byId("board").hidden = !any;
      showEmpty(!any);
      cards.update(dirty, remade, lively);
      ranking.draw(counters.top(TOP), { all: counters.total, lively });
      headline.count(counters.total, lively);
      headline.set("events", number(counters.names.length));
    },
    tick(synced) {
      const { resetsAt } = counters;
      const end = health()?.resetsAt; // on the service's clock
      headline.set("reset", resetsAt === null ? "–" : countdown(resetsAt - now()), end ? `Counts start again ${dayEnd(end)}` : "");
      hits.tick(synced);
      cards.tick();
      if (!synced) return; // the last numbers stay
      headline.set("rate", hits.rate());
      headline.askPeople();
    },
  };
}
