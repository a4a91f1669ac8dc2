// The socket and its state machine. Touches no DOM.

import { io } from "/static/vendor/socket.io.esm.min.js";

const SNAPSHOT_TIMEOUT_MS = 5000; // a snapshot that has not arrived by then was lost: ask again
const KICKED_DELAY_MS = 2000; // Socket.IO never retries after the server hung up, so we do, gently
const SILENT_MS = 32_000; // the server is heard every 25 s at least, when it pings
const FAILURES_BEFORE_HINT = 2; // two failures and never a success look like a proxy that drops upgrades

/** @param {Listener} listener */
export function openLive({ key, onSnapshot, onChanges, onStatus }) {
  const auth = (/** @type {(data: object) => void} */ send) => send(key() ? { key: key() } : {});
  const socket = io("/live", { auth, transports: ["websocket"], reconnectionDelay: 500, reconnectionDelayMax: 10_000 });
  let [seq, size, failures, timer, asOf] = [-1, 0, 0, 0, Date.now()];
  let [awaiting, synced, everSynced, online, silent, locked] = [true, false, false, navigator.onLine, false, false];
  /** @type {Snapshot|null} */ let pages = null;
  /** @type {Changes[]} */ let early = [];
  /** @type {string[]|null} */ let degraded = null;

  /** @returns {ConnectionName} */
  function name() {
    if (!online) return "offline";
    if (locked) return "locked";
    if (!synced) return everSynced || failures ? "reconnecting" : "loading";
    if (silent) return "stale";
    return degraded ? "degraded" : "live";
  }

  function report() {
    onStatus({ name: name(), reasons: degraded ?? [], asOf, hint: !everSynced && failures >= FAILURES_BEFORE_HINT });
  }

  /** Data is proof: whatever the browser says about the network, the server was just heard. */
  function heard() {
    asOf = Date.now();
    if (online && !silent) return;
    [online, silent] = [true, false];
    report();
  }

  /** Whether a connection that looks open has gone quiet; asked once a second. */
  function listen() {
    const quiet = synced && Date.now() - asOf > SILENT_MS;
    if (quiet === silent) return;
    silent = quiet;
    report();
  }

  function expectSnapshot() {
    [awaiting, pages, early] = [true, null, []];
    watch();
  }

  function watch() {
    clearTimeout(timer);
    timer = setTimeout(() => awaiting && socket.connected && resync(), SNAPSHOT_TIMEOUT_MS);
  }

  function resync() {
    expectSnapshot();
    socket.emit("resync");
  }

  /** @param {Snapshot} page */
  function takePage(page) {
    heard();
    // The first page begins anew, also unasked: after a loss, or when an administrator has lowered a count.
    if (page.offset === 0) [pages, awaiting] = [{ ...page, names: [], counts: [] }, true];
    if (pages?.epoch !== page.epoch || pages.seq !== page.seq || page.offset !== pages.names.length) return resync();
    pages.names.push(...page.names);
    pages.counts.push(...page.counts);
    if (pages.names.length >= page.size) finish(pages);
  }

  /** @param {Snapshot} whole */
  function finish(whole) {
    clearTimeout(timer);
    const late = early;
    ({ seq, size } = whole);
    [awaiting, synced, everSynced, locked, failures, pages, early] = [false, true, true, false, 0, null, []];
    report();
    onSnapshot(whole);
    late.forEach(takeChanges);
  }

  /** @param {Changes} message */
  function takeChanges(message) {
    heard();
    if (awaiting) return early.push(message);
    if (message.seq <= seq) return;
    const grown = size + message.names.length;
    const first = message.since ?? message.seq; // a page that fell behind gets in one what it missed in several
    if (first > seq + 1 || message.changes.some(([index]) => index >= grown)) return resync();
    [seq, size] = [message.seq, grown];
    onChanges(message);
  }

  function retry() {
    if (!socket.connected && !locked) renew();
  }

  /** A new connection, with the key there is now. */
  function renew() {
    [locked, failures] = [false, 0];
    socket.disconnect().connect();
    report();
  }

  // The client hands over messages that came early before it says "connect": keep what is there.
  socket.on("connect", watch);
  socket.on("snapshot", takePage);
  socket.on("changes", takeChanges);
  socket.on("reset", expectSnapshot);
  socket.on("state", (/** @type {{status: string, reasons?: string[]}} */ state) => {
    degraded = state.status === "ok" ? null : state.reasons ?? [];
    report();
  });
  socket.on("disconnect", (/** @type {string} */ reason) => {
    [synced, silent] = [false, false];
    expectSnapshot();
    report();
    if (reason === "io server disconnect") setTimeout(() => socket.connect(), KICKED_DELAY_MS);
  });
  socket.on("connect_error", (/** @type {Error & {data?: {status?: number}}} */ error) => {
    failures += 1;
    locked = [401, 403].includes(error.data?.status ?? 0); // asked again with the same key, it would say the same
    report();
    if (!socket.active && !locked) setTimeout(() => socket.connect(), KICKED_DELAY_MS);
  });
  socket.io.on("ping", heard);
  addEventListener("offline", () => { online = false; report(); });
  addEventListener("online", () => { online = true; report(); retry(); });
  report();
  return { retry, renew, listen };
}
