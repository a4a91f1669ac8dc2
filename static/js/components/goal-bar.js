// How far an event is to its goal: the numbers, and a thin bar. The tally marks celebrate when it is reached.

import { goalParts } from "../data/goals.js";
import { h, setText } from "../lib/dom.js";

/** @returns {{el: HTMLElement, draw: (goal: Goal|undefined, live: boolean) => boolean}} `draw` returns whether live hits have just reached the goal */
export function createGoalBar() {
  const parts = ["state", "", "unit"].map((className) => h("span", { className }));
  const bar = h("i", {});
  const el = h("p", { className: "goal", hidden: true }, ...parts, h("span", { className: "goal-bar" }, bar));
  let celebrated = 0;
  return {
    el,
    draw(goal, live) {
      el.hidden = !goal;
      const isNew = live && (goal?.times ?? 0) > celebrated;
      celebrated = goal?.times ?? 0;
      if (!goal) return false;
      goalParts(goal).forEach((text, i) => setText(parts[i], text));
      bar.style.transform = `scaleX(${Math.min(1, goal.value / goal.target).toFixed(4)})`;
      el.classList.toggle("reached", goal.value >= goal.target);
      return isNew;
    },
  };
}
