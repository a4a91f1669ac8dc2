// How far an event is to its goal: the numbers, and a thin bar. The tally marks celebrate when it is reached.

import { goalParts } from "../data/goals.js";
import { h, setText } from "../lib/dom.js";

/** @returns {{el: HTMLElement, draw: (goal: Goal|undefined, live: boolean) => boolean}} `draw` returns whether live hits have just reached the goal */
export function createGoalBar() {
  const words = h("span", {});
  const unit = h("span", { className: "unit" });
  const bar = h("i", {});
  const el = h("p", { className: "goal", hidden: true }, words, unit, h("span", { className: "goal-bar" }, bar));
  let celebrated = 0;
  return {
    el,
    draw(goal, live) {
      el.hidden = !goal;
      const isNew = live && (goal?.times ?? 0) > celebrated;
      celebrated = goal?.times ?? 0;
      if (!goal) return false;
      const [numbers, period] = goalParts(goal);
      setText(words, numbers);
      setText(unit, ` ${period}`);
      bar.style.transform = `scaleX(${Math.min(1, goal.value / goal.target).toFixed(4)})`;
      el.classList.toggle("reached", goal.value >= goal.target);
      return isNew;
    },
  };
}
