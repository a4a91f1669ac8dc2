// An SVG bar chart of counts: the previous period or another event as a line, keyboard reading, and a table of the same numbers.

import { notesOfBars } from "../data/notes.js";
import { axisTicks } from "../data/series.js";
import { h, isolate, s, table } from "../lib/dom.js";
import { compact, dateTime, longDate, month, number, plural, shortDate, shortMonth, time } from "../lib/format.js";
import { noteOfBar } from "./chart-notes.js";

const MARGIN = { left: 40, bottom: 26, top: 10 }; // Pixels for the axis labels.
const LABEL_WIDTH = 64;
const NOTE_TARGET = 24; // Pixels, because the mark of a note is narrower than a finger.
const NOTES_MAX = 5; // In a tooltip. The table has all.
const BAR_WIDTH_MAX = 40;
const LABEL_INTERVALS = { minute: [5, 10, 15, 20, 30], hour: [1, 2, 3, 6, 12], day: [1, 2, 3, 5, 7, 14, 30, 90], month: [1, 2, 3, 6, 12] };
/** @type {Record<Step, (start: number, iso: string) => string>} */ const FULL_NAMES = { minute: time, hour: dateTime, day: (_, iso) => longDate(iso), month: (_, iso) => month(iso) };
/** @type {Record<Step, (start: number, iso: string) => string>} */ const AXIS_NAMES = { minute: time, hour: time, day: (_, iso) => shortDate(iso), month: (_, iso) => shortMonth(iso) };

/**
 * @param {HTMLElement} host a section with its heading in .head @param {(bucket: Bucket) => void} onPick called with the bar that was chosen
 * @param {(as: string) => void} onToggle called with "table" or "", which the address keeps
 * @param {{tapTwice?: boolean}} [options] tapTwice: the first tap on a bar only shows its tooltip
 */
export function createBarChart(host, onPick, onToggle, { tapTwice = false } = {}) {
  const title = /** @type {HTMLElement} */ (host.querySelector("h2"));
  const readout = h("p", { className: "readout" });
  const tooltip = h("p", { className: "tooltip" });
  const note = h("p", { className: "note" });
  const toggle = h("button", { className: "button quiet toggle", type: "button" }, "View as table");
  const svg = /** @type {SVGSVGElement} */ (s("svg", { class: "plot", role: "img", tabindex: 0, "aria-label": title.textContent ?? "" }));
  const tableView = h("div", { className: "table-view", tabIndex: 0, role: "region", hidden: true });
  const axis = s("g", { class: "axis" });
  const barGroup = s("g", {});
  const noteMarks = s("g", { class: "note-marks" });
  const line = s("path", {});
  /** @type {SVGRectElement[]} */ const bars = [];
  /** @type {ChartData} */ let data = { points: [], line: [], event: "", step: "minute", running: true, pickable: false };
  /** @type {TimelineNote[]} */ let notes = [];
  /** The notes of each bar. @type {TimelineNote[][]} */ let barNotes = [];
  let barStep = 1;
  let highlightedIndex = -1;
  let mayPick = true;
  let caption = "";
  const fullName = (/** @type {Bucket} */ { start, iso }) => FULL_NAMES[data.step](start, iso);
  title.after(readout);
  title.parentElement?.append(toggle);
  const plotArea = h("div", { className: "plot-area" }, svg, tooltip);
  host.append(plotArea, tableView, h("div", { className: "foot" }, note));
  svg.append(axis, barGroup, noteMarks, line);

  function drawAxis(/** @type {number[]} */ ticks, /** @type {number} */ width, /** @type {number} */ height) {
    const lines = ticks.flatMap((tick) => {
      const y = MARGIN.top + height * (1 - tick / ticks[ticks.length - 1]);
      return [s("line", { x1: MARGIN.left, x2: width, y1: y, y2: y }),
        s("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, compact(tick))];
    });
    const interval = LABEL_INTERVALS[data.step].find((buckets) => buckets * barStep >= LABEL_WIDTH) ?? 180;
    const position = (/** @type {Bucket} */ { start }, /** @type {number} */ i) =>
      data.step === "minute" ? start / 60_000 : data.step === "hour" ? new Date(start).getHours() : data.points.length - 1 - i;
    const times = data.points.flatMap((point, i) => {
      const x = MARGIN.left + (i + 0.5) * barStep;
      const isNewestDay = ["day", "month"].includes(data.step) && i === data.points.length - 1; // It always has a label.
      if (position(point, i) % interval || x < MARGIN.left + 16 || (x > width - LABEL_WIDTH / 2 && !isNewestDay)) return [];
      const anchor = x > width - LABEL_WIDTH / 2 ? { x: width, "text-anchor": "end" } : { x, "text-anchor": "middle" };
      return [s("text", { ...anchor, y: MARGIN.top + height + 21 }, AXIS_NAMES[data.step](point.start, point.iso))];
    });
    axis.replaceChildren(...lines, ...times);
  }

  function draw() {
    const box = svg.getBoundingClientRect();
    const { points } = data;
    if (!box.width || !points.length) return;
    const height = box.height - MARGIN.top - MARGIN.bottom;
    barStep = (box.width - MARGIN.left) / points.length;
    const ticks = axisTicks(Math.max(...points.map(({ count }) => count), ...data.line.map(({ count }) => count)));
    const max = ticks[ticks.length - 1];
    svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    drawAxis(ticks, box.width, height);
    while (bars.length < points.length) bars.push(barGroup.appendChild(s("rect", { class: "bar" })));
    while (bars.length > points.length) bars.pop()?.remove();
    const barWidth = Math.min(barStep * 0.62, BAR_WIDTH_MAX);
    points.forEach(({ count, iso }, i) => {
      const barHeight = count ? Math.max(2, (height * count) / max) : 0;
      const rect = { x: MARGIN.left + i * barStep + (barStep - barWidth) / 2, y: MARGIN.top + height - barHeight, width: barWidth, height: barHeight, rx: Math.min(barWidth, barHeight, 16) / 2 };
      for (const [key, value] of Object.entries(rect)) bars[i].setAttribute(key, value.toFixed(2));
      bars[i].classList.toggle("selected", iso === data.selected);
      bars[i].classList.toggle("partial", data.running && i === points.length - 1);
    });
    const marks = barNotes.flatMap((found, i) => (found.length ? [`M${(MARGIN.left + (i + 0.5) * barStep).toFixed(1)} ${MARGIN.top + height + 1}l6 8h-12z`] : []));
    noteMarks.replaceChildren(s("path", { d: marks.join("") }));
    const path = data.line.map(({ count }, i) => `${i ? "L" : "M"}${(MARGIN.left + (i + 0.5) * barStep).toFixed(1)} ${(MARGIN.top + height * (1 - count / max)).toFixed(1)}`);
    line.setAttribute("d", path.join(""));
    line.setAttribute("class", data.event ? "other" : "previous");
  }

  /** Updates the chart's accessible name, and its table if that is open. */
  function describe() {
    const { points, running } = data;
    if (!points.length) return tableView.replaceChildren();
    const counts = points.map((point) => point.count);
    const sum = counts.reduce((a, b) => a + b);
    const max = Math.max(...counts);
    const noted = barNotes.flat().length ? `, ${plural(barNotes.flat().length, "note")}` : "";
    const selected = points.find(({ iso }) => iso === data.selected);
    const last = running ? `, ${number(counts[counts.length - 1])} so far this ${data.step}` : "";
    svg.setAttribute("aria-label", `${title.textContent}, ${caption.toLowerCase()}: ${plural(sum, "hit")} in total, most at ` +
      `${fullName(points[counts.indexOf(max)])} with ${number(max)}${last}${noted}${selected ? `, ${fullName(selected)} selected` : ""}. Use the arrow keys to read each bar${data.pickable ? ", and Enter to open it" : ""}.`);
    tableView.setAttribute("aria-label", `${title.textContent}, as a table`);
    if (tableView.hidden) return;
    const rows = points.map((point, i) => [fullName(point), point.known ? number(point.count) : "–", ...(data.line[i] ? [number(data.line[i].count)] : []),
      ...(noted ? [h("span", { className: "notes" }, ...noteLines(i))] : [])]);
    tableView.replaceChildren(table([plural(points.length, data.step), "Hits", ...(data.line.length ? [data.event || "Previous period"] : []), ...(noted ? [h("span", { className: "notes" }, "Notes")] : [])], rows.reverse()));
  }

  const noteLines = (/** @type {number} */ i) => (barNotes[i] ?? []).map((note) => h("span", { className: "noted" }, ...noteOfBar(note, data.step)));

  /** @param {number} i a bar, or -1 for none */
  function highlight(i) {
    const point = data.points[i];
    highlightedIndex = point ? i : -1;
    bars.forEach((bar, k) => bar.classList.toggle("highlighted", k === highlightedIndex));
    const other = data.line[i];
    const compared = other ? ` · ${number(other.count)} ${data.event ? `of ${isolate(data.event)}` : "in the previous period"}` : "";
    const hint = mayPick || !data.pickable ? "" : " · tap again to open";
    tooltip.textContent = point ? `${fullName(point)} · ${point.known ? plural(point.count, "hit") : "before the first count"}${compared}${hint}` : "";
    const lines = noteLines(i);
    tooltip.append(...lines.slice(0, NOTES_MAX), ...(lines.length > NOTES_MAX ? [h("span", { className: "noted" }, `and ${number(lines.length - NOTES_MAX)} more: see the table`)] : []));
    // Above the bars, so that it covers none of them.
    const left = MARGIN.left + (i + 0.5) * barStep - tooltip.offsetWidth / 2;
    tooltip.style.left = `${Math.max(0, Math.min(left, svg.clientWidth - tooltip.offsetWidth))}px`;
  }

  /** Returns the bar at a pointer. Below the bars, it is the nearest one with a note, if there is one near. @param {MouseEvent} event */
  function indexAt({ offsetX, offsetY }) {
    const position = (offsetX - MARGIN.left) / barStep;
    const distance = (/** @type {number} */ i) => Math.abs(position - i - 0.5) * barStep;
    const near = offsetY < svg.clientHeight - NOTE_TARGET ? [] : [...barNotes.keys()].filter((i) => barNotes[i].length && distance(i) <= NOTE_TARGET / 2);
    return near.sort((a, b) => distance(a) - distance(b))[0] ?? Math.floor(position);
  }

  const pointAt = (/** @type {MouseEvent} */ event) => highlight(indexAt(event));
  const pick = () => { if (mayPick && data.pickable && data.points[highlightedIndex]) onPick(data.points[highlightedIndex]); };
  svg.addEventListener("pointerdown", (event) => {
    mayPick = !tapTwice || event.pointerType !== "touch" || indexAt(event) === highlightedIndex;
    pointAt(event);
  });
  svg.addEventListener("pointermove", pointAt);
  // A finger that was lifted leaves the tooltip, because it covers the bar while it points.
  svg.addEventListener("pointerleave", ({ pointerType }) => { if (pointerType === "mouse") highlight(-1); });
  // Live updates would be announced all the time, so the tooltip is a live region only while the chart has focus.
  svg.addEventListener("focus", () => tooltip.setAttribute("aria-live", "polite"));
  svg.addEventListener("blur", () => { tooltip.removeAttribute("aria-live"); highlight(-1); });
  svg.addEventListener("click", pick);
  svg.addEventListener("keydown", (event) => {
    const last = data.points.length - 1;
    const target = { ArrowLeft: highlightedIndex < 0 ? last : highlightedIndex - 1, ArrowRight: highlightedIndex + 1, Home: 0, End: last }[event.key];
    mayPick = true;
    if (event.key === "Enter") pick();
    if (target === undefined) return;
    event.preventDefault();
    highlight(Math.min(last, Math.max(0, target)));
  });
  toggle.addEventListener("click", () => onToggle(tableView.hidden ? "table" : ""));
  new ResizeObserver(draw).observe(svg);

  function drawAll() {
    barNotes = notesOfBars(data.points, data.step, notes);
    draw();
    highlight(highlightedIndex);
  }

  return {
    draw,
    /** @param {string|null} [as] "table", or the bars */
    show(as) {
      if (tableView.hidden !== (as === "table")) return;
      tableView.hidden = !tableView.hidden;
      highlight(-1);
      plotArea.hidden = !tableView.hidden;
      toggle.textContent = tableView.hidden ? "View as table" : "View as chart";
      draw();
      describe();
    },
    describe,
    /** Ends reading the bars, which stay in sight until those of another event or range are set. */
    clear() {
      data = { ...data, points: [] };
      highlight(-1);
    },
    /** @param {ChartData} next @param {string} text the period in words */
    set(next, text) {
      data = next;
      caption = text;
      svg.classList.toggle("clickable", data.pickable);
      // Hide the bars of the event that was shown before.
      svg.style.visibility = data.points.length ? "" : "hidden";
      readout.textContent = caption;
      drawAll();
    },
    showNotes(/** @type {TimelineNote[]} */ next) {
      notes = next;
      drawAll();
      describe();
    },
    setNote: (/** @type {(Node|string)[]} */ ...content) => note.replaceChildren(...content),
  };
}
