// The Socket.IO connection to /live: its state, snapshots and changes. It does not touch the DOM.

import { io } from "../../vendor/socket.io.esm.min.js";

import { SERVER_URL } from "./api.js";

const SNAPSHOT_TIMEOUT_MS = 5000; // A snapshot that takes longer was lost.
const RECONNECT_DELAY_MS = 2000; // Socket.IO does not reconnect after the server closed the connection, so this module does.
const SILENCE_TIMEOUT_MS = 32_000; // The server sends a ping every 25 s.
const CONNECT_TIMEOUT_MS = 10_000; // A proxy may leave a WebSocket handshake without a response.
const FAILURES_BEFORE_HINT = 2; // Two failures without any success: neither a WebSocket nor long polling works.

export function openSocket(/** @type {SocketCallbacks} */ { apiKey, onSnapshot, onChanges, onStatus }) {
  const auth = (/** @type {(data: object) => void} */ send) => send(apiKey() ? { key: apiKey() } : {});
  const { pathname: path } = new URL(`${SERVER_URL}/socket.io/`);
  const socket = io("/live", {
    path, auth, transports: ["websocket", "polling"], timeout: CONNECT_TIMEOUT_MS, reconnectionDelay: 500, reconnectionDelayMax: 10_000,
  });
  let seq = -1;
  let nameCount = 0;
  let failures = 0;
  let snapshotTimer = 0;
  let lastMessageAt = Date.now();
  const flags = { online: navigator.onLine, locked: false, synced: false, everSynced: false, silent: false };
  /** @type {IncomingSnapshot} */ let incoming = { awaiting: true, partial: null, buffered: [] };
  /** @type {string[]|null} */ let degradedReasons = null;

  /** @returns {ConnectionName} */
  function connectionName() {
    const { online, locked, synced, everSynced, silent } = flags;
    if (!online) return "offline";
    if (locked) return "locked";
    if (!synced) return everSynced || failures ? "reconnecting" : "loading";
    if (silent) return "stale";
    return degradedReasons ? "degraded" : "live";
  }

  function report() {
    onStatus({ name: connectionName(), reasons: degradedReasons ?? [], asOf: lastMessageAt, hint: !flags.everSynced && failures >= FAILURES_BEFORE_HINT });
  }

  /** A message proves that the network works, even if the browser reports that it is offline. */
  function noteMessage() {
    lastMessageAt = Date.now();
    if (flags.online && !flags.silent) return;
    Object.assign(flags, { online: true, silent: false });
    report();
  }

  /** Detects an open connection that no longer delivers anything. Call it every second. */
  function checkSilence() {
    const silent = flags.synced && Date.now() - lastMessageAt > SILENCE_TIMEOUT_MS;
    if (silent === flags.silent) return;
    flags.silent = silent;
    report();
  }

  function expectSnapshot() {
    incoming = { awaiting: true, partial: null, buffered: [] };
    startSnapshotTimer();
  }

  function startSnapshotTimer() {
    clearTimeout(snapshotTimer);
    snapshotTimer = setTimeout(() => incoming.awaiting && socket.connected && resync(), SNAPSHOT_TIMEOUT_MS);
  }

  function resync() {
    expectSnapshot();
    socket.emit("resync");
  }

  function addSnapshotChunk(/** @type {Snapshot} */ chunk) {
    noteMessage();
    // The server also starts a snapshot unasked: after data loss, or when an administrator has lowered a count.
    if (chunk.offset === 0) Object.assign(incoming, { awaiting: true, partial: { ...chunk, names: [], counts: [] } });
    const { partial } = incoming;
    if (partial?.epoch !== chunk.epoch || partial.seq !== chunk.seq || chunk.offset !== partial.names.length) return resync();
    partial.names.push(...chunk.names);
    partial.counts.push(...chunk.counts);
    if (partial.names.length >= chunk.size) completeSnapshot(partial);
  }

  function completeSnapshot(/** @type {Snapshot} */ snapshot) {
    clearTimeout(snapshotTimer);
    ({ seq, size: nameCount } = snapshot);
    failures = 0;
    Object.assign(flags, { locked: false, synced: true, everSynced: true });
    const { buffered } = incoming;
    incoming = { awaiting: false, partial: null, buffered: [] };
    report();
    onSnapshot(snapshot);
    buffered.forEach(applyChanges);
  }

  function applyChanges(/** @type {Changes} */ message) {
    noteMessage();
    if (incoming.awaiting) return incoming.buffered.push(message);
    if (message.seq <= seq) return;
    const newNameCount = nameCount + message.names.length;
    const first = message.since ?? message.seq; // A slow client gets several messages in one, from `since` to `seq`.
    if (first > seq + 1 || message.changes.some(([index]) => index >= newNameCount)) return resync();
    seq = message.seq;
    nameCount = newNameCount;
    onChanges(message);
  }

  const retry = () => { if (!socket.connected && !flags.locked) reconnect(); };

  /** Opens a new connection with the current API key. */
  function reconnect() {
    flags.locked = false;
    failures = 0;
    socket.disconnect().connect();
    report();
  }

  // Socket.IO delivers messages that arrived early before it emits "connect", so keep them here.
  socket.on("connect", startSnapshotTimer);
  socket.on("snapshot", addSnapshotChunk);
  socket.on("changes", applyChanges);
  socket.on("reset", expectSnapshot);
  socket.on("state", (/** @type {{status: string, reasons?: string[]}} */ state) => {
    degradedReasons = state.status === "ok" ? null : state.reasons ?? [];
    report();
  });
  socket.on("disconnect", (/** @type {string} */ reason) => {
    Object.assign(flags, { synced: false, silent: false });
    expectSnapshot();
    report();
    if (reason === "io server disconnect") setTimeout(() => socket.connect(), RECONNECT_DELAY_MS);
  });
  socket.on("connect_error", (/** @type {Error & {data?: {status?: number}}} */ error) => {
    failures += 1;
    // Some proxies block WebSockets, and others send long polls to different nodes, so the next attempt begins with the other
    // transport. An error with data comes from Tally itself, so the network works.
    if (error.data) flags.online = true;
    else socket.io.opts.transports.reverse();
    flags.locked = [401, 403].includes(error.data?.status ?? 0); // A retry with the same API key would fail again.
    report();
    if (!socket.active && !flags.locked) setTimeout(() => socket.connect(), RECONNECT_DELAY_MS);
  });
  socket.io.on("ping", noteMessage);
  addEventListener("offline", () => { flags.online = false; report(); });
  addEventListener("online", () => { flags.online = true; report(); retry(); });
  report();
  return { retry, reconnect, checkSilence };
}
