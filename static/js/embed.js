// The page for a frame: one live number. It checks the query, because the author of the frame's URL chooses it.

const event = decodeURIComponent(location.pathname.split("/").at(-1) ?? "").normalize("NFC");
const query = new URLSearchParams(location.search);
const root = document.documentElement;
const [count, label] = ["count", "label"].map((id) => /** @type {HTMLElement} */ (document.getElementById(id)));
const { format } = new Intl.NumberFormat();

const theme = query.get("theme") ?? "";
const accent = query.get("accent") ?? "";
if (theme === "dark") root.dataset.theme = theme;
if (/^([0-9a-f]{3}|[0-9a-f]{6})$/i.test(accent)) root.style.setProperty("--accent", `#${accent}`);
label.textContent = query.get("label") ?? event;

function show(/** @type {number} */ value) {
  count.textContent = format(value);
  fit();
  document.title = `${label.textContent}: ${count.textContent}`;
}

/** Fits the number to the frame. WebKit zooms vw and cqw in a font-size twice. */
function fit() {
  count.style.fontSize = `${Math.min(64, 0.6 * innerHeight, innerWidth / (0.66 * (count.textContent ?? "").length))}px`;
}

function connect() {
  const source = new EventSource(`${location.pathname}/stream`);
  source.addEventListener("update", ({ data }) => show(JSON.parse(data).count));
  source.addEventListener("reset", () => show(0));
  source.onopen = () => root.classList.remove("stale");
  source.onerror = () => {
    root.classList.add("stale");
    // An EventSource does not reconnect after a response that is not a stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000 + Math.random() * 10_000);
  };
}

addEventListener("resize", fit);
fit();
connect();
