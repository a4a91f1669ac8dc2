// The page of one event: its numbers, its chart, code to share it, and corrections.

import { confirmTyped } from "../components/confirm-dialog.js";
import { openGoalForm } from "../components/goal-form.js";
import { createHeadline } from "../components/headline.js";
import { createHitsChart } from "../components/hits-chart.js";
import { eventPath, get, send, SERVER_URL, throttle } from "../data/api.js";
import { byId, copyOnClick, h, setText } from "../lib/dom.js";
import { number, percent } from "../lib/format.js";
import { link, navigate } from "../lib/router.js";

const TOTAL_MS = 30_000; // The total moves with the live count; a reload corrects it after a reset.

const BADGE = "Badge (Markdown)";

/** Returns code that uses an event from elsewhere, by label. @param {string} name @returns {Record<string, string>} */
function snippets(name) {
  const path = encodeURIComponent(name).replaceAll("'", "%27");
  const attribute = name.replaceAll("&", "&amp;").replaceAll('"', "&quot;");
  return {
    "Count a hit": `curl -X POST '${SERVER_URL}/event/${path}'`,
    "Stream updates": `curl -N '${SERVER_URL}/stream?event=${path}'`,
    [BADGE]: `![hits](${SERVER_URL}/badge/${path}.svg)`,
    "Embed (iframe)": `<iframe src="${SERVER_URL}/embed/${path}" width="200" height="100" style="border:0;color-scheme:light" title="hits"></iframe>`,
    "Web page script": `<script src="${SERVER_URL}/static/tally-1.js" defer></script>\n<span data-tally-count="${attribute}"></span>\n<button data-tally-hit="${attribute}">Click</button>`,
  };
}

/** @param {Session} session @param {() => void} onCorrected @returns {Page & {countHits: () => void}} */
export function createEventPage({ counters, goals, now, isLoaded, loadGoals }, onCorrected) {
  let name = "";
  let received = 0;
  /** The total of the days before today. @type {number|null} */ let totalBeforeToday = null;
  const chart = createHitsChart(byId("event-chart"), now, (range) => navigate(link("event", name, { range })));
  const headline = createHeadline(byId("event-today"), {
    total: "Total", rate: "Hits per minute", part: "Share of today’s hits", users: "Unique users today", sessions: "Active sessions",
  });
  const count = () => counters.countOf(name);

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

  function drawGoal(/** @type {boolean} */ live) {
    const goal = goals.of(name);
    headline.goal(goal, live);
    setText(byId("event-goal"), goal ? "Edit goal" : "Set a goal");
  }

  function openShareDialog() {
    // The image is requested without an API key, as other people's browsers request it.
    const badge = h("img", { src: `${SERVER_URL}/badge/${encodeURIComponent(name)}.svg`, alt: `Badge of ${name}` });
    badge.onerror = () => badge.replaceWith(h("p", { className: "note" }, "Badges need a key on this server, so this one will not show on other sites."));
    byId("share-body").replaceChildren(...Object.entries(snippets(name)).map(([label, text]) => {
      const code = h("code", { tabIndex: 0 }, text);
      const button = h("button", { className: "button", type: "button", ariaLabel: `Copy: ${label}` }, "Copy");
      copyOnClick(button, code);
      return h("div", { className: "snippet" }, h("h3", {}, label), ...(label === BADGE ? [badge] : []), h("div", { className: "curl" }, code, button));
    }));
    byId("share").showModal();
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
  byId("share-open").addEventListener("click", openShareDialog);
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
      chart.show(name, query.get("range") ?? "");
    },
    hide: () => byId("share").close(),
    reload,
    /** Adds the hits that have just arrived to the chart. */
    countHits() {
      const before = received;
      received = counters.receivedOf(name);
      if (received > before) chart.count(received - before);
    },
    paint: (_, full) => draw(!full),
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
