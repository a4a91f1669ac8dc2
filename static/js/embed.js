// One live number in a frame. What the query asks for is checked here: it comes from whoever wrote the frame.

const event = decodeURIComponent(location.pathname.split("/")[2]).normalize("NFC");
const asked = new URLSearchParams(location.search);
const root = document.documentElement;
const [count, label] = ["count", "label"].map((id) => /** @type {HTMLElement} */ (document.getElementById(id)));
const whole = new Intl.NumberFormat();

const theme = asked.get("theme") ?? "";
const accent = asked.get("accent") ?? "";
if (["light", "dark"].includes(theme)) root.dataset.theme = theme;
if (/^([0-9a-f]{3}|[0-9a-f]{6})$/i.test(accent)) root.style.setProperty("--accent", `#${accent}`);
label.textContent = asked.get("label") ?? event;

/** @param {number} value */
function show(value) {
  count.textContent = whole.format(value);
  count.style.setProperty("--digits", String(count.textContent.length));
  document.title = `${label.textContent}: ${count.textContent}`;
}

function listen() {
  const source = new EventSource(`${location.pathname}/stream`);
  source.addEventListener("update", ({ data }) => show(JSON.parse(data).count));
  source.addEventListener("reset", () => show(0));
  source.onopen = () => root.classList.remove("stale");
  source.onerror = () => {
    root.classList.add("stale");
    // After an answer that is no stream it does not come again by itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5000 + Math.random() * 10_000);
  };
}

listen();
