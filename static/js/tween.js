// @ts-check
// Counts numbers up, all of them in one shared animation loop.

import { reducedMotion } from "./dom.js";

const DURATION_MS = 240; // a little less than the time between two paints of data
const FRAME_MS = 32; // 30 frames a second look as smooth for digits and cost half

/** @typedef {(n: number) => void} Write */
/** @type {Map<object, {from: number, to: number, start: number, write: Write}>} */
const running = new Map();
let painted = 0;

/** @param {number} now */
function frame(now) {
  if (now - painted >= FRAME_MS) {
    painted = now;
    for (const [key, { from, to, start, write }] of running) {
      const left = 1 - Math.min(1, Math.max(0, (now - start) / DURATION_MS));
      write(Math.round(to - (to - from) * left * left));
      if (!left) running.delete(key);
    }
  }
  if (running.size) requestAnimationFrame(frame);
}

/**
 * Moves a shown number; another call with the same key only changes the goal.
 * @param {object} key @param {number} from @param {number} to @param {Write} write
 */
export function tween(key, from, to, write) {
  if (reducedMotion.matches || document.hidden || from === to) {
    running.delete(key);
    return write(to);
  }
  if (!running.size) requestAnimationFrame(frame);
  running.set(key, { from, to, start: performance.now(), write });
}
