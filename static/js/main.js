// The dashboard: pages by the part of the address behind #, shortcuts, and what all pages share.

import { createLock } from "./components/key-form.js";
import { createStatus } from "./components/status-banner.js";
import { choose, pref } from "./data/prefs.js";
import { openSession } from "./data/session.js";
import { byId, h } from "./lib/dom.js";
import { number, plural } from "./lib/format.js";
import { parse } from "./lib/router.js";
import { createEvent } from "./pages/event.js";
import { createHistory } from "./pages/history.js";
import { createBoard } from "./pages/leaderboard.js";
import { createOverview } from "./pages/overview.js";
import { createSettings } from "./pages/settings.js";

const session = openSession({
  paint(dirty, remade, lively) {
    byId("main").removeAttribute("aria-busy");
    page().paint?.(dirty, remade, lively);
  },
  tick(synced) {
    page().tick?.(synced);
    announce();
  },
  onHits: (hits) => overview.count(hits),
  onSnapshot: () => page().renew(),
  onStatus(status) {
    state = status.name;
    showStatus(status);
    lock(state === "locked" && view !== "settings");
    byId("pause").ariaPressed = String(session.isPaused());
    if (view === "settings") page().renew();
  },
});
const overview = createOverview(session);
/** @type {Record<string, Page>} */
const pages = {
  overview, event: createEvent(session, session.reconnect), leaderboard: createBoard(), history: createHistory(), settings: createSettings(session),
};
const showStatus = createStatus(session.retry);
const lock = createLock(byId("lock"), session.reconnect);
let view = "";
let [at, said, saidAt, state] = ["", -1, Date.now(), ""];
const page = () => pages[view];

function route() {
  const asked = parse(location.hash);
  const next = Object.hasOwn(pages, asked.view) && (asked.view !== "event" || asked.name) ? asked.view : "overview";
  const there = next === "event" ? next + asked.name : next;
  const moved = view && there !== at;
  if (view && view !== next) page().hide?.();
  [view, at] = [next, there];
  for (const section of document.querySelectorAll("[data-page]")) /** @type {HTMLElement} */ (section).hidden = section.getAttribute("data-page") !== view;
  for (const anchor of document.querySelectorAll("[data-to]")) {
    anchor.getAttribute("data-to") === view ? anchor.setAttribute("aria-current", "page") : anchor.removeAttribute("aria-current");
  }
  lock(state === "locked" && view !== "settings");
  page().show(asked);
  document.title = [page().title(), "Tally"].filter(Boolean).join(" · ");
  session.repaint();
  if (!moved) return;
  // A reader who hears the page has to hear that it is another one.
  scrollTo(0, 0);
  byId(`page-${view}`).querySelector("h1").focus();
}

/** The sum, spoken now and then to who asked for it. */
function announce() {
  const every = 1000 * Number(pref("announce"));
  if (said < 0) said = session.counters.total;
  if (!every || Date.now() - saidAt < every) return;
  const total = session.counters.total;
  byId("announce").textContent = `${plural(total, "hit")} today, ${number(Math.max(0, total - said))} more`;
  [said, saidAt] = [total, Date.now()];
}

function switchTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const shown = pref("theme") === "system" ? system : pref("theme");
  choose("theme", shown === "dark" ? "light" : "dark");
  if (view === "settings") page().renew();
}

const pause = () => session.pause(!session.isPaused());
const go = (/** @type {string} */ hash) => () => { location.hash = hash; };
/** @type {Record<string, [string, () => void]>} */
const shortcuts = {
  "/": ["Filter events; Esc clears", () => byId("filter").focus()],
  p: ["Pause, go on", pause],
  t: ["Light, dark", switchTheme],
  k: ["Kiosk", () => location.assign("/kiosk")],
  o: ["Overview", go("#/")],
  l: ["Leaderboard", go("#/leaderboard")],
  h: ["History", go("#/history")],
  s: ["Settings", go("#/settings")],
  "?": ["These shortcuts", () => byId("help").showModal()],
};
byId("keys").append(...Object.entries(shortcuts).map(([keys, [does]]) =>
  h("div", {}, h("dt", {}, h("kbd", {}, keys)), h("dd", {}, does))));
addEventListener("keydown", (event) => {
  const { key, ctrlKey, metaKey, altKey } = event;
  const target = /** @type {HTMLElement} */ (event.target);
  const filter = byId("filter");
  if (key === "Escape" && target === filter) return overview.clearFilter();
  const typing = target.matches("input:not([type=radio]), select, textarea") || document.querySelector("dialog[open]");
  if (typing || ctrlKey || metaKey || altKey || pref("shortcuts") === "off") return;
  const [, run] = shortcuts[key] ?? [];
  if (!run || (key === "/" && !filter.offsetParent)) return;
  event.preventDefault();
  run();
});
byId("pause").addEventListener("click", pause);
byId("help-open").addEventListener("click", () => byId("help").showModal());
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault(); // the part behind # is the page's
  byId("main").focus();
});
addEventListener("hashchange", route);
route();
session.start();
