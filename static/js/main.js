// The dashboard: its pages, their routes, keyboard shortcuts, and the status that all pages share.

import { updateAdminPanels } from "./components/admin-panels.js";
import { createKeyPrompt } from "./components/key-form.js";
import { createStatusBanner } from "./components/status-banner.js";
import { goalParts } from "./data/goals.js";
import { notify } from "./data/notifications.js";
import { getPref, setPref } from "./data/prefs.js";
import { openSession } from "./data/session.js";
import { byId, h } from "./lib/dom.js";
import { dateTime, number, plural } from "./lib/format.js";
import { link, navigate, parseHash } from "./lib/router.js";
import { createEventPage } from "./pages/event.js";
import { createOverview } from "./pages/overview.js";

const session = openSession({
  paint(dirty, full, animate) {
    if (byId("main").ariaBusy) whenIdle(() => Object.values(loaders).forEach((load) => load().catch(() => {}))); // During an outage it would be too late.
    byId("main").removeAttribute("aria-busy");
    currentPage().paint?.(dirty, full, animate);
  },
  tick(synced) {
    currentPage().tick?.(synced);
    announceTotal();
  },
  onHits(hits) {
    overview.count(hits);
    eventPage.countHits();
  },
  onSnapshot() {
    currentPage().reload();
    updateAdminPanels(pageElement()); // A server that was restarted may have other keys.
  },
  onGoal(event, goal) {
    const text = goalParts({ ...goal, value: goal.target }).join("");
    byId("announce").textContent = `${event}. ${text}`;
    notify(event, text, goTo(link("event", event)));
  },
  onStatus(status) {
    locked = status.name === "locked";
    showStatus(status);
    updateKeyPrompt();
    byId("pause").ariaPressed = String(session.isPaused());
    if (view === "settings") currentPage().reload();
  },
});
const overview = createOverview(session);
const eventPage = createEventPage(session, session.reconnect);
/** The pages that few readers open first, so their modules are loaded later. @type {Record<string, () => Promise<{createPage: (session: Session) => Page}>>} */ const loaders = {
  leaderboard: () => import("./pages/leaderboard.js"),
  history: () => import("./pages/history.js"),
  alerts: () => import("./pages/alerts.js"),
  settings: () => import("./pages/settings.js"),
};
/** Those that have been loaded, and the one in place of a page that could not be. @type {Record<string, Page>} */ const pages = {
  overview, event: eventPage, failed: { title: () => "Page not loaded", show() {}, reload() {} },
};
const whenIdle = globalThis.requestIdleCallback ?? setTimeout; // Safari has no idle callbacks.
const showStatus = createStatusBanner(session.retry);
const showKeyPrompt = createKeyPrompt(byId("key-prompt"), session.reconnect);
const filter = byId("filter");
let view = "overview";
let heading = ""; // of the page that is shown, or "" until the first one is
let locked = false;
/** @type {Promise<() => void>|undefined} */ let palette;
/** Where the reader was on each entry of the browser's history. @type {Map<string, number>} */ const scrollPositions = new Map();
let entry = "";
let lastAnnouncement = { total: -1, at: Date.now() };
const currentPage = () => pages[view];
const pageElement = () => byId(`page-${view}`);
const updateKeyPrompt = () => showKeyPrompt(locked && view !== "settings"); // The settings page has a key form.

/** Loads the page of a view. Returns false if that failed. @param {string} name */
async function loadPage(name) {
  const module = await loaders[name]().catch(() => null);
  if (module) pages[name] ??= module.createPage(session);
  return module !== null;
}

async function showRoute() {
  const { hash } = location;
  const route = parseHash(hash);
  const wanted = Object.hasOwn(loaders, route.view) || (route.view === "event" && route.name) ? route.view : "overview";
  const nextView = pages[wanted] || await loadPage(wanted) ? wanted : "failed";
  if (location.hash !== hash) return; // The reader has gone to another page.
  const nextHeading = wanted === "event" ? link(wanted, route.name) : wanted;
  const moved = heading && nextHeading !== heading;
  const previousEvent = parseHash(heading).name;
  if (view !== nextView) currentPage().hide?.();
  view = nextView;
  heading = nextHeading;
  for (const section of document.querySelectorAll("[data-page]")) /** @type {HTMLElement} */ (section).hidden = section.getAttribute("data-page") !== view;
  for (const anchor of document.querySelectorAll("[data-to]")) {
    const to = anchor.getAttribute("data-to");
    if (to === wanted) anchor.setAttribute("aria-current", "page");
    else if (to === "overview" && view === "event") anchor.setAttribute("aria-current", "true"); // The page of an event is below it.
    else anchor.removeAttribute("aria-current");
  }
  updateKeyPrompt();
  updateAdminPanels(pageElement());
  currentPage().show(route);
  document.title = [currentPage().title(), "Tally"].filter(Boolean).join(" · ");
  session.repaint();
  enterHistory();
  if (!moved) return;
  const position = scrollPositions.get(entry) ?? 0;
  scrollTo(0, position);
  // Back from an event, the reader goes on at its card. A screen reader announces every other new page.
  if (!(position && view === "overview" && overview.focusCard(previousEvent))) pageElement().querySelector("h1").focus({ preventScroll: true });
}

/** Gives the current entry of the browser's history a name, to find its scroll position later. */
function enterHistory() {
  if (!history.state?.entry) history.replaceState({ entry: String(Math.random()) }, "");
  ({ entry } = history.state);
  if (view === "overview") for (const anchor of /** @type {NodeListOf<HTMLAnchorElement>} */ (document.querySelectorAll(".to-overview"))) anchor.href = location.hash || "#/";
}

/** Adds the time to the print, and how many cards it has, because only those near the screen are in the document. */
function preparePrint() {
  const { length, [length - 1]: last } = document.querySelectorAll("#cards .card");
  const part = view === "overview" && Number(last?.ariaSetSize) > length ? ` ${number(length)} of ${plural(Number(last.ariaSetSize), "event")}: export the CSV for all.` : "";
  byId("printed").textContent = `${document.title}, ${dateTime(Date.now())}.${part}`;
}

/** Announces the total to screen readers at the interval from the settings. */
function announceTotal() {
  const { total } = session.counters;
  const intervalMs = 1000 * Number(getPref("announce"));
  if (lastAnnouncement.total < 0) lastAnnouncement.total = total;
  if (!intervalMs || Date.now() - lastAnnouncement.at < intervalMs) return;
  byId("announce").textContent = `${plural(total, "hit")} today, ${number(Math.max(0, total - lastAnnouncement.total))} more than at the last announcement`;
  lastAnnouncement = { total, at: Date.now() };
}

function switchTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const shown = getPref("theme") === "system" ? system : getPref("theme");
  setPref("theme", shown === "dark" ? "light" : "dark");
  if (view === "settings") currentPage().reload();
}

const togglePause = () => session.setPaused(!session.isPaused());
const showHelp = () => byId("help").showModal();

function focusFilter() {
  if (!filter.offsetParent) navigate("#/");
  filter.focus();
}

const goTo = (/** @type {string} */ hash) => () => { location.hash = hash; };
const switchDensity = () => setPref("density", getPref("density") === "compact" ? "comfortable" : "compact");

/** Opens the command palette, or closes it. Its module is loaded the first time, after the dialog is open: no letter is lost. */
async function togglePalette() {
  const dialog = /** @type {HTMLDialogElement} */ (byId("palette"));
  if (dialog.open) return dialog.close();
  if (document.querySelector("dialog[open]")) return;
  dialog.showModal();
  /** @type {Command[]} */ const actions = [
    ...Object.entries(shortcuts).map(([key, [label, run]]) => ({ label, hint: key, run })),
    { label: "Switch card size", hint: "", run: switchDensity },
    { label: "Export today’s counts as CSV", hint: "", run: () => byId("export").click() },
    { label: "API reference", hint: "", run: () => location.assign("docs") },
  ];
  palette ??= import("./components/command-palette.js").then(({ createCommandPalette }) => createCommandPalette(dialog, session.counters, actions));
  const show = await palette.catch(() => { byId("palette-note").textContent = "Search could not be loaded. Reload the page."; });
  show?.();
}

/** Chooses a range of the chart or of the leaderboard by its position. @param {number} position from 1 */
function chooseRange(position) {
  const inputs = /** @type {NodeListOf<HTMLInputElement>} */ (pageElement().querySelectorAll(":is(.chart, .title) .segments input"));
  inputs[position - 1]?.click();
}

/** @type {Record<string, [string, () => void]>} */ const shortcuts = {
  "/": ["Filter events (Esc clears)", focusFilter],
  p: ["Pause or resume", togglePause],
  t: ["Switch theme: light or dark", switchTheme],
  k: ["Kiosk", () => location.assign("kiosk")],
  o: ["Overview", goTo("#/")],
  l: ["Leaderboard", goTo("#/leaderboard")],
  h: ["History", goTo("#/history")],
  a: ["Alerts", goTo("#/alerts")],
  s: ["Settings", goTo("#/settings")],
  "?": ["Show shortcuts", showHelp],
};
/** @type {[string, string][]} */ const otherKeys = [
  ["1 – 9", "Choose a range"], [/Mac|iPhone|iPad/.test(navigator.userAgent) ? "⌘ K" : "Ctrl K", "Search events, pages and actions"],
  ["Arrow keys", "Move between cards, or between the bars of a chart"],
];
byId("keys").append(...[...Object.entries(shortcuts).map(([key, [label]]) => [key, label]), ...otherKeys].map(([key, label]) =>
  h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, label))));
addEventListener("keydown", (event) => {
  const { key, ctrlKey, metaKey, altKey } = event;
  const target = /** @type {HTMLElement} */ (event.target);
  if (key === "Escape" && target === filter) return overview.clearFilter();
  if (key.toLowerCase() === "k" && (ctrlKey || metaKey) && !altKey) {
    event.preventDefault();
    return togglePalette();
  }
  const typing = target.matches("input:not([type=radio]), select, textarea") || document.querySelector("dialog[open]");
  if (typing || ctrlKey || metaKey || altKey || getPref("shortcuts") === "off") return;
  const [, run] = shortcuts[key] ?? (/^[1-9]$/.test(key) ? ["", () => chooseRange(Number(key))] : []);
  if (!run) return;
  event.preventDefault();
  run();
});
byId("pause").addEventListener("click", togglePause);
byId("palette-open").addEventListener("click", togglePalette);
byId("load-again").addEventListener("click", () => location.reload()); // A browser may keep the failure of a module until then.
byId("help-open").addEventListener("click", showHelp);
document.querySelector(".skip")?.addEventListener("click", (event) => {
  // Following the link would change the hash, which belongs to the router.
  event.preventDefault();
  byId("main").focus();
});
history.scrollRestoration = "manual"; // The browser would scroll before the page has its height.
addEventListener("scroll", () => scrollPositions.set(entry, scrollY), { passive: true });
addEventListener("beforeprint", preparePrint);
addEventListener("hashchange", showRoute);
showRoute().then(session.start);
