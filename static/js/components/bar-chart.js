// Numbers to SVG: counts as bars, those of the period before as a line, and a table of the same numbers.

import { ticks } from "../data/series.js";
import { h, s, table } from "../lib/dom.js";
import { compact, day as dayName, dayOfMonth, minute, moment, number, plural } from "../lib/format.js";

const [GUTTER, FOOT, HEAD] = [40, 22, 10]; // px around the bars: axis numbers, times, room for the top number
const LABEL_PX = 64; // room one time label wants
const EVERY = { minute: [5, 10, 15, 20, 30], hour: [1, 2, 3, 6, 12], day: [1, 2, 3, 5, 7, 14, 30, 90] };
/** @type {Record<Step, (bucket: Bucket) => string>} */
const NAME = { minute: ({ start }) => minute(start), hour: ({ start }) => moment(start), day: ({ iso }) => dayName(iso) };
/** @type {Record<Step, (bucket: Bucket) => string>} */
const LABEL = { minute: NAME.minute, hour: NAME.minute, day: ({ iso }) => dayOfMonth(iso) };

/** @param {HTMLElement} host a section with its heading in .head; the rest is made here @param {(bucket: Bucket) => void} [onPick] */
export function createChart(host, onPick) {
  const title = /** @type {HTMLElement} */ (host.querySelector("h2"));
  const [readout, note] = [h("p", { className: "readout" }), h("p", { className: "note" })];
  const toggle = h("button", { className: "button quiet toggle", type: "button" }, "View as table");
  const svg = /** @type {SVGSVGElement} */ (s("svg", { class: onPick ? "plot picks" : "plot", role: "img", tabindex: 0, "aria-label": title.textContent ?? "" }));
  const sheet = h("div", { className: "sheet", tabIndex: 0, role: "region", hidden: true });
  const [axis, posts, ghost] = [s("g", { class: "axis" }), s("g", {}), s("path", { class: "ghost" })];
  /** @type {SVGRectElement[]} */ const bars = [];
  /** @type {{points: Bucket[], before: Bucket[], step: Step, running: boolean}} */
  let data = { points: [], before: [], step: "minute", running: true };
  let [width, height, step, pointed, span] = [0, 0, 1, -1, ""];
  title.after(readout);
  title.parentElement?.append(toggle);
  host.append(svg, sheet, note);
  svg.append(axis, posts, ghost);

  /** @param {number[]} values */
  function drawAxis(values) {
    const lines = values.flatMap((value) => {
      const y = HEAD + height * (1 - value / values[values.length - 1]);
      return [s("line", { x1: GUTTER, x2: width, y1: y, y2: y }),
        s("text", { x: GUTTER - 8, y: y + 4, "text-anchor": "end" }, compact(value))];
    });
    const every = EVERY[data.step].find((units) => units * step >= LABEL_PX) ?? 180;
    const place = (/** @type {Bucket} */ { start }, /** @type {number} */ i) =>
      data.step === "minute" ? start / 60_000 : data.step === "hour" ? new Date(start).getHours() : data.points.length - 1 - i;
    const times = data.points.flatMap((point, i) => {
      const x = GUTTER + (i + 0.5) * step;
      if (place(point, i) % every || x < GUTTER + 16 || x > width - LABEL_PX / 2) return [];
      return [s("text", { x, y: HEAD + height + 17, "text-anchor": "middle" }, LABEL[data.step](point))];
    });
    axis.replaceChildren(...lines, ...times);
  }

  function draw() {
    const box = svg.getBoundingClientRect();
    const { points, before } = data;
    if (!box.width || !points.length) return;
    [width, height, step] = [box.width, box.height - HEAD - FOOT, Math.min(64, (box.width - GUTTER) / points.length)];
    const values = ticks(Math.max(...points.map(({ count }) => count), ...before.map(({ count }) => count)));
    const top = values[values.length - 1];
    svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    drawAxis(values);
    while (bars.length < points.length) bars.push(posts.appendChild(s("rect", { class: "bar" })));
    while (bars.length > points.length) bars.pop()?.remove();
    const wide = Math.min(step * 0.62, 18); // slim posts, like the strokes of a tally
    points.forEach(({ count }, i) => {
      const tall = count ? Math.max(2, (height * count) / top) : 0;
      const at = { x: GUTTER + i * step + (step - wide) / 2, y: HEAD + height - tall, width: wide, height: tall, rx: Math.min(wide, tall) / 2 };
      for (const [key, value] of Object.entries(at)) bars[i].setAttribute(key, value.toFixed(2));
      bars[i].classList.toggle("partial", data.running && i === points.length - 1);
    });
    const line = before.map(({ count }, i) => `${i ? "L" : "M"}${(GUTTER + (i + 0.5) * step).toFixed(1)} ${(HEAD + height * (1 - count / top)).toFixed(1)}`);
    ghost.setAttribute("d", line.join(""));
  }

  /** What the picture says, in a sentence; and the table, if it is open. */
  function describe() {
    const { points, before, running } = data;
    if (!points.length) return sheet.replaceChildren();
    const counts = points.map((point) => point.count);
    const [sum, most] = [counts.reduce((a, b) => a + b), Math.max(...counts)];
    const last = running ? `, ${number(counts[counts.length - 1])} in the running ${data.step}` : "";
    svg.setAttribute("aria-label", `${title.textContent}, ${span.toLowerCase()}: ${plural(sum, "hit")} in total, most at ` +
      `${NAME[data.step](points[counts.indexOf(most)])} with ${number(most)}${last}. Arrow keys read the bars.`);
    sheet.setAttribute("aria-label", `${title.textContent}, as a table`);
    if (sheet.hidden) return;
    const rows = points.map((point, i) => [NAME[data.step](point), number(point.count), ...(before[i] ? [number(before[i].count)] : [])]);
    const unit = data.step[0].toUpperCase() + data.step.slice(1);
    sheet.replaceChildren(table([unit, "Hits", ...(before.length ? ["The period before"] : [])], rows.reverse()));
  }

  /** @param {number} i the bar under the pointer, or -1 */
  function read(i) {
    const point = data.points[i];
    pointed = point ? i : -1;
    bars.forEach((bar, k) => bar.classList.toggle("pointed", k === pointed));
    const before = data.before[i] ? ` · ${number(data.before[i].count)} the period before` : "";
    readout.textContent = point ? `${NAME[data.step](point)} · ${plural(point.count, "hit")}${before}` : span;
  }

  svg.addEventListener("pointermove", (event) => read(Math.floor((event.offsetX - GUTTER) / step)));
  svg.addEventListener("pointerleave", () => read(-1));
  svg.addEventListener("focus", () => readout.setAttribute("aria-live", "polite")); // read out only for who asks bar by bar
  svg.addEventListener("blur", () => { readout.removeAttribute("aria-live"); read(-1); });
  svg.addEventListener("click", () => data.points[pointed] && onPick?.(data.points[pointed]));
  svg.addEventListener("keydown", (event) => {
    const last = data.points.length - 1;
    const to = { ArrowLeft: pointed < 0 ? last : pointed - 1, ArrowRight: pointed + 1, Home: 0, End: last }[event.key];
    if (event.key === "Enter" && data.points[pointed]) onPick?.(data.points[pointed]);
    if (to === undefined) return;
    event.preventDefault();
    read(Math.min(last, Math.max(0, to)));
  });
  toggle.addEventListener("click", () => {
    sheet.hidden = !sheet.hidden;
    svg.toggleAttribute("hidden", !sheet.hidden);
    toggle.textContent = sheet.hidden ? "View as table" : "View as chart";
    draw();
    describe();
  });
  new ResizeObserver(draw).observe(svg);

  return {
    draw,
    describe,
    /** @param {{points: Bucket[], before?: Bucket[], step: Step}} next @param {string} says its time, in words @param {boolean} [running] the last bucket */
    set({ points, before = [], step }, says, running = true) {
      data = { points, before, step, running };
      span = says;
      svg.style.visibility = points.length ? "" : "hidden"; // bars of another event would be a lie
      if (pointed < 0) readout.textContent = says;
      draw();
    },
    say: (/** @type {string} */ text) => { note.textContent = text; },
  };
}
