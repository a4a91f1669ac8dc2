// The page of one event: its numbers, its chart, code to share it, and corrections.

import { confirmTyped } from "../components/confirm-dialog.js";
import { openGoalForm } from "../components/goal-form.js";
import { createHeadline } from "../components/headline.js";
import { createHitsChart } from "../components/hits-chart.js";
import { eventPath, get, send, throttle } from "../data/api.js";
import { byId, h, setText } from "../lib/dom.js";
import { number, percent } from "../lib/format.js";
import { link, navigate } from "../lib/router.js";

const TOTAL_MS = 30_000; // The total moves with the live count; a reload corrects it after a reset.

const OPTIONS = 100; // Events that the field offers to compare with; another name can be typed.

/** @param {Session} session @param {() => void} onCorrected @returns {Page & {countHits: () => void}} */
export function createEventPage(session, onCorrected) {
  const { counters, goals, now, isLoaded, loadGoals } = session;
  const other = byId("event-with");
  let name = "";
  /** The query of the address. @type {Record<string, string>} */ let view = {};
  let received = 0;
  /** The total of the days before today. @type {number|null} */ let totalBeforeToday = null;
  const chart = createHitsChart(byId("event-chart"), now, changeView);
  const headline = createHeadline(byId("event-today"), {
    total: "Total", rate: "Hits per minute", part: "Share of today’s hits", users: "Unique users today", sessions: "Active sessions",
  });
  /** @type {ReturnType<typeof import("../components/share-panel.js").createSharePanel>|undefined} */ let share;
  const count = () => counters.countOf(name);

  function changeView(/** @type {Record<string, string>} */ change) {
    navigate(link("event", name, { ...view, ...change }));
  }

  const loadTotal = throttle(TOTAL_MS, async () => {
    const requestedName = name;
    /** @type {Value|null} */ const value = await get(eventPath(name)).catch(() => null);
    if (requestedName !== name || !value) return;
    totalBeforeToday = value.total - value.count;
    draw(false);
  });

  function draw(/** @type {boolean} */ animate) {
    if (!isLoaded()) return;
    const value = count();
    headline.count(value, animate);
    drawGoal(animate);
    headline.set("total", totalBeforeToday === null ? "–" : number(totalBeforeToday + value));
    byId("event-unknown").hidden = totalBeforeToday === null || totalBeforeToday + value > 0;
    headline.set("part", counters.total ? percent(value / counters.total) : "–");
  }

  /** Opens the panel, which few readers need, so its module is loaded the first time. */
  async function openSharePanel() {
    const event = name;
    const module = await import("../components/share-panel.js").catch(() => null);
    if (!module || event !== name) return;
    share ??= module.createSharePanel(session);
    share.open(event);
  }

  function drawGoal(/** @type {boolean} */ live) {
    const goal = goals.of(name);
    headline.goal(goal, live);
    setText(byId("event-goal"), goal ? "Edit goal" : "Set a goal");
  }

  function reload() {
    totalBeforeToday = null;
    chart.reload();
    headline.reload();
    loadTotal.now();
  }

  const confirmAndReload = (/** @type {Omit<Confirmation, "word"|"onDone">} */ confirmation) =>
    confirmTyped({ ...confirmation, word: name, onDone: () => { onCorrected(); reload(); } });
  byId("event-goal").addEventListener("click", () => openGoalForm(name, goals.of(name), { onKey: onCorrected, onSaved: loadGoals }));
  other.addEventListener("focus", () => {
    const options = counters.top(OPTIONS).filter((row) => row.name !== name).map((row) => h("option", { value: row.name }));
    byId("event-names").replaceChildren(...options);
  });
  other.addEventListener("change", () => changeView({ with: other.value.trim().normalize() }));
  byId("share-open").addEventListener("click", openSharePanel);
  byId("event-reset").addEventListener("click", () => confirmAndReload({
    title: "Reset today’s count to 0?", action: "Reset",
    text: "The total and charts keep everything, and History records the reset.",
    run: () => send("PUT", eventPath(name), { count: 0 }),
  }));
  byId("event-correct").addEventListener("click", () => confirmAndReload({
    title: "Edit counts", action: "Save", text: "History records the change and the previous values.",
    fields: [
      { label: "Today’s count", name: "count", expected: "expectedCount", read: count },
      { label: "Total", name: "total", expected: "expectedTotal", read: () => (totalBeforeToday === null ? null : totalBeforeToday + count()) },
    ],
    run: (values) => send("PUT", eventPath(name), values),
  }));
  byId("event-delete").addEventListener("click", () => confirmAndReload({
    title: "Delete this event?", action: "Delete", text: "This deletes its counts, charts, users and sessions. You can’t undo this.",
    run: () => send("DELETE", eventPath(name)),
  }));

  return {
    title: () => name,
    show({ name: wanted, query }) {
      if (name !== wanted) {
        name = wanted;
        received = counters.receivedOf(name);
        totalBeforeToday = null;
        byId("event-unknown").hidden = true;
        byId("event-name").textContent = name;
        byId("event-users").href = link("leaderboard", "", { event: name });
        byId("event-alert").href = link("alerts", "", { event: name });
        headline.show(name);
        loadTotal.now();
      }
      view = Object.fromEntries(query);
      other.value = view.with ?? "";
      chart.show(name, view);
    },
    hide: () => byId("share").close(),
    reload,
    /** Adds the hits that have just arrived to the chart. */
    countHits() {
      const before = received;
      received = counters.receivedOf(name);
      if (received > before) chart.count(received - before);
    },
    paint(_, full) {
      draw(!full);
      share?.paint();
    },
    tick(synced) {
      chart.tick(synced);
      loadTotal();
      drawGoal(true);
      if (!synced) return;
      headline.set("rate", chart.rate());
      headline.load();
    },
  };
}
