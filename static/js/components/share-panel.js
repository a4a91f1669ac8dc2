// The drawer that shows an event elsewhere: a preview, the code to copy, and the setting that the server is missing.

import { badgeHtml, badgeMarkdown, countClick, curlHit, curlStream, encodeName, frame, showNumber, urlOf } from "../data/snippets.js";
import { byId, createSegmentedControl, h, s, setText } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { updateAdminPanels } from "./admin-panels.js";
import { createCodeBlock } from "./code-block.js";
import { createLinkSnippet } from "./share-links.js";

const DRAW_DELAY_MS = 250; // A badge is requested for a label, not for each of its letters.
const KIOSK_EVENTS = 50; // A kiosk shows at most these.
const LOCAL_HOST = /^(localhost|127\.[\d.]+|\[::1\])$/;

/** @typedef {{preview: Node|string, code: Record<string, string>, notes: (string|Node)[][]}} Shared */

const code = (/** @type {string} */ text) => h("code", {}, text);
const listed = (/** @type {string} */ use, /** @type {string} */ setting) => ["Sites in ", code(setting), ` can ${use} this. If yours is not in it, add it and restart Tally.`];
const restart = (/** @type {string} */ what, /** @type {string} */ setting) => [`${what} Set `, code(setting), " and restart Tally."];

function field(/** @type {string} */ label, /** @type {Record<string, any>} */ props) {
  const input = h("input", { autocomplete: "off", ...props });
  return h("label", { className: "setting" }, label, input);
}

function choice(/** @type {string} */ label, /** @type {string} */ name, /** @type {Record<string, string>} */ labels) {
  const group = h("fieldset", { className: "segments", ariaLabel: label });
  createSegmentedControl(group, `share-${name}`, labels, () => {})(Object.keys(labels)[0]);
  return h("div", { className: "setting" }, h("span", {}, label), group);
}

function checks(/** @type {string} */ label, /** @type {string} */ name, /** @type {string[]} */ values) {
  const boxes = values.map((value, i) => h("label", { className: "check" }, h("input", { type: "checkbox", name, value, checked: i === 0 }), h("bdi", {}, value)));
  return h("fieldset", { className: "checks" }, h("legend", {}, label), ...boxes);
}

/** Draws a QR code, or says why there is none. @param {string} text */
function qrCode(text) {
  const host = h("div", { className: "qr" });
  import("../../vendor/uqr.js").then(({ encode }) => {
    const { size, data } = encode(text, { border: 2 });
    const squares = data.flatMap((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : ""))).join("");
    host.append(s("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": "QR code of the address", "shape-rendering": "crispEdges" }, s("path", { d: squares })));
  }).catch(() => host.append("This address is too long for a QR code."));
  return host;
}

/** @param {Session} session @returns {{open: (event: string) => void, paint: () => void}} */
export function createSharePanel({ counters, health }) {
  const dialog = byId("share");
  const fields = h("form", { className: "fields" });
  const output = h("div", {});
  let name = "";
  let form = "frame";
  let timer = 0;
  const isOpen = (/** @type {string} */ access) => health()?.open.includes(access) ?? true;
  const needsKey = (/** @type {string} */ access) => !isOpen(access);

  /** @type {Record<string, {title: string, fields: () => Node[], draw: (values: Record<string, string>, events: string[]) => Shared}>} */ const forms = {
    frame: {
      title: "Frame",
      fields: () => [field("Label", { name: "label", value: name, maxLength: 128 }), choice("Theme", "theme", { light: "Light", dark: "Dark" })],
      draw({ label, "share-theme": theme }) {
        const url = urlOf(`/embed/${encodeName(name)}`, { ...(label === name ? {} : { label }), ...(theme === "dark" && { theme }) });
        const preview = /** @type {HTMLIFrameElement} */ (h("iframe", { src: url, width: "200", height: "100", title: `Preview of ${name}` }));
        return {
          preview: isOpen("frames") || isOpen("read") ? h("div", { className: `ground ${theme}` }, preview) : "", code: { HTML: frame(url, name) },
          notes: isOpen("frames") ? [listed("show", "TALLY_EMBED_ORIGINS")]
            : [restart("No other site can show this yet.", "TALLY_EMBED_ORIGINS=https://your.site")],
        };
      },
    },
    script: {
      title: "Script",
      fields: () => [],
      draw: () => ({
        preview: h("p", { className: "lead" }, h("span", { className: "live value" }, number(counters.countOf(name))), h("button", { disabled: true }, "Click")), code: { "Show today’s count": showNumber(name), "Count a click": countClick(name) },
        notes: [
          isOpen("scripts") ? listed("use", "TALLY_ALLOWED_ORIGINS")
            : restart("No other site can use this yet.", "TALLY_ALLOWED_ORIGINS=https://your.site"),
          ...(needsKey("count") ? [["Its clicks are not counted while ", code("TALLY_WRITE_KEYS"), " is set."]] : []),
          ...(needsKey("read") ? [["Its number stays empty while ", code("TALLY_READ_KEYS"), " is set."]] : []),
        ],
      }),
    },
    badge: {
      title: "Badge",
      fields: () => [field("Label", { name: "label", value: name, maxLength: 128 }), choice("Number", "value", { total: "Total", count: "Today" })],
      draw({ label, "share-value": value }) {
        const url = urlOf(`/badge/${encodeName(name)}.svg`, { ...(label === name ? {} : { label }), ...(value === "count" && { value }) });
        return {
          preview: isOpen("badges") ? h("img", { src: url, alt: `Badge of ${name}` }) : "", code: { Markdown: badgeMarkdown(url, label), HTML: badgeHtml(url, label) },
          notes: isOpen("badges") ? [[`Shows ${value === "count" ? "today’s count" : "the total"}. Any site can show it, without a setting or a key.`]] : [restart("Badges need a key on this server.", "TALLY_PUBLIC_BADGES=true")],
        };
      },
    },
    kiosk: {
      title: "Kiosk",
      fields: () => [
        checks("Events", "event", [...new Set([name, ...counters.top(KIOSK_EVENTS).map((row) => row.name)])].slice(0, KIOSK_EVENTS)),
        field("Seconds for each", { name: "rotate", type: "number", min: "0", max: "3600", value: "15" }),
        choice("Theme", "theme", { system: "System", light: "Light", dark: "Dark" }),
      ],
      draw({ rotate, "share-theme": theme }, events) {
        const url = urlOf("/kiosk", { event: events, rotate: events.length > 1 && rotate !== "15" ? rotate : "", theme: theme === "system" ? "" : theme });
        return {
          preview: qrCode(url), code: { Address: url },
          notes: [
            ...(events.length ? [] : [["Without an event, it shows the sum of all events, and the first ones."]]),
            ...(LOCAL_HOST.test(location.hostname) ? [["Other devices cannot open this address. Open this page by the server’s own name or IP address."]] : []),
            ...(needsKey("read") ? [["The screen asks for a read key once."]] : []),
          ],
        };
      },
    },
    curl: {
      title: "curl",
      fields: () => [],
      draw: () => ({ preview: "", code: { "Count a hit": curlHit(name, needsKey("count")), "Stream updates": curlStream(name, needsKey("read")) }, notes: [] }),
    },
  };

  function draw() {
    const values = new FormData(/** @type {HTMLFormElement} */ (fields));
    const texts = /** @type {Record<string, string>} */ (Object.fromEntries(values));
    const { preview, code: snippets, notes } = forms[form].draw(texts, /** @type {string[]} */ (values.getAll("event")));
    const blocks = Object.entries(snippets).map(([label, text]) => {
      const block = createCodeBlock(label);
      block.show(text);
      return h("div", {}, h("h3", {}, label), block.el);
    });
    output.replaceChildren(...(preview ? [h("div", { className: "preview" }, preview)] : []), ...notes.map((note) => h("p", { className: "note" }, ...note)), ...blocks);
  }

  function chooseForm(/** @type {string} */ chosen) {
    form = chosen;
    fields.replaceChildren(...forms[form].fields());
    draw();
  }

  const picker = h("fieldset", { className: "segments", ariaLabel: "Form" });
  const selectForm = createSegmentedControl(picker, "share-form", Object.fromEntries(Object.entries(forms).map(([key, { title }]) => [key, title])), chooseForm);
  byId("share-body").append(picker, fields, output);
  fields.addEventListener("submit", (event) => event.preventDefault());
  fields.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(draw, DRAW_DELAY_MS);
  });
  dialog.addEventListener("close", () => output.replaceChildren()); // A frame would keep its stream.

  return {
    open(event) {
      if (name !== event) byId("share-link").replaceChildren(createLinkSnippet(event));
      name = event;
      selectForm(form);
      chooseForm(form);
      dialog.showModal();
      updateAdminPanels(byId("share-link"));
    },
    /** Shows the present count in the preview of the script. */
    paint() {
      const live = output.querySelector(".live");
      if (live) setText(/** @type {HTMLElement} */ (live), number(counters.countOf(name)));
    },
  };
}
