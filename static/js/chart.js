// @ts-check
// Numbers to SVG: hits per minute as bars, with a table of the same numbers.

import { byId, h, s } from "./dom.js";
import { compact, minute, number, plural } from "./format.js";
import { MINUTES } from "./series.js";

const [GUTTER, FOOT, HEAD] = [40, 22, 10]; // px around the bars: axis numbers, times, room for the top number
const LABEL_PX = 64; // room one time label wants
const SPAN = "Last 60 minutes";

/** Round numbers from 0 to at least `max`, five steps at most. @param {number} max @returns {number[]} */
export function ticks(max) {
  const least = Math.max(max, 4) / 5;
  const unit = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  const step = [1, 2, 5, 10].map((times) => times * unit).find((round) => round >= least) ?? least;
  return Array.from({ length: Math.ceil(Math.max(max, 4) / step) + 1 }, (_, i) => i * step);
}

/** @param {import("./series.js").Series} series */
export function createChart(series) {
  const [svg, readout, toggle, table] = ["chart", "chart-readout", "chart-toggle", "chart-table"].map(byId);
  const bars = Array.from({ length: MINUTES }, () => s("rect", { class: "bar" }));
  const axis = s("g", { class: "axis" });
  let [width, height, step] = [0, 0, 1];
  svg.append(axis, ...bars);

  /** @param {number[]} values */
  function drawAxis(values) {
    const lines = values.flatMap((value) => {
      const y = HEAD + height * (1 - value / values[values.length - 1]);
      return [s("line", { x1: GUTTER, x2: width, y1: y, y2: y }),
        s("text", { x: GUTTER - 8, y: y + 4, "text-anchor": "end" }, compact(value))];
    });
    const every = [5, 10, 15, 20].find((minutes) => minutes * step >= LABEL_PX) ?? 30;
    const times = series.points.flatMap(({ start }, i) => {
      const x = GUTTER + (i + 0.5) * step;
      if ((start / 60_000) % every || x < GUTTER + 16 || x > width - 16) return [];
      return [s("text", { x, y: HEAD + height + 17, "text-anchor": "middle" }, minute(start))];
    });
    axis.replaceChildren(...lines, ...times);
  }

  function draw() {
    const box = svg.getBoundingClientRect();
    if (!box.width || !series.points.length) return;
    [width, height, step] = [box.width, box.height - HEAD - FOOT, (box.width - GUTTER) / MINUTES];
    const values = ticks(Math.max(...series.points.map((point) => point.count)));
    const top = values[values.length - 1];
    svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    drawAxis(values);
    const wide = step * 0.62; // slim posts, like the strokes of a tally
    series.points.forEach(({ count }, i) => {
      const tall = count ? Math.max(wide, (height * count) / top) : 0;
      const at = { x: GUTTER + i * step + (step - wide) / 2, y: HEAD + height - tall, width: wide, height: tall, rx: wide / 2 };
      for (const [key, value] of Object.entries(at)) bars[i].setAttribute(key, value.toFixed(2));
      bars[i].classList.toggle("partial", i === series.points.length - 1);
    });
  }

  /** What the picture says, in a sentence; and the table, if it is open. */
  function describe() {
    if (!series.points.length) return;
    const counts = series.points.map((point) => point.count);
    const [sum, most] = [counts.reduce((a, b) => a + b), Math.max(...counts)];
    svg.setAttribute("aria-label", `Hits per minute over the last 60 minutes: ${plural(sum, "hit")} in total, most at ` +
      `${minute(series.points[counts.indexOf(most)].start)} with ${number(most)}, ${number(counts[counts.length - 1])} in the running minute.`);
    if (table.hidden) return;
    const rows = series.points.map(({ start, count }) => h("tr", {}, h("th", { scope: "row" }, minute(start)), h("td", {}, number(count))));
    table.querySelector("tbody").replaceChildren(...rows.reverse());
  }

  /** @param {number} i the bar under the pointer, or -1 */
  function read(i) {
    const point = series.points[i];
    bars.forEach((bar, k) => bar.classList.toggle("pointed", !!point && k === i));
    readout.textContent = point ? `${minute(point.start)} · ${plural(point.count, "hit")}` : SPAN;
  }

  svg.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => read(Math.floor((event.offsetX - GUTTER) / step)));
  svg.addEventListener("pointerleave", () => read(-1));
  toggle.addEventListener("click", () => {
    table.hidden = !table.hidden;
    svg.toggleAttribute("hidden", !table.hidden);
    toggle.textContent = table.hidden ? "View as table" : "View as chart";
    describe();
  });
  new ResizeObserver(draw).observe(svg);
  return { draw, describe };
}
