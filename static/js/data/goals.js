// The goals of events, and how far they are: loaded from the server, then continued with live counts.

import { number } from "../lib/format.js";

export class Goals {
  /** @type {Map<string, Goal>} */ #goals = new Map();

  /** @param {import("./counters.js").Counters} counters @param {(event: string, goal: Goal) => void} onReached called when live hits reach a goal */
  constructor(counters, onReached) {
    this.counters = counters;
    this.onReached = onReached;
  }

  /** Replaces all goals. @param {GoalRow[]} rows */
  load(rows) {
    this.#goals = new Map(rows.map(({ eventName, goal: { count, total }, count: today, total: all, day }) => {
      const isDaily = count !== undefined;
      const target = count ?? total ?? 0;
      const before = this.#goals.get(eventName);
      const isSame = before?.target === target && before.isDaily === isDaily;
      // A new goal that is reached already is not an occasion.
      return [eventName, { target, isDaily, day, value: isDaily ? today : all, earlier: isDaily ? 0 : all - today, isReached: isSame ? before.isReached : null, times: isSame ? before.times : 0 }];
    }));
    this.updateAll();
  }

  /** Follows the count of an event. @param {string} event @param {number} count of today */
  update(event, count) {
    const goal = this.#goals.get(event);
    // After midnight, a total is unknown until the goals are loaded again.
    if (!goal || (!goal.isDaily && goal.day !== this.counters.day)) return;
    goal.value = goal.earlier + count;
    const wasReached = goal.isReached;
    goal.isReached = goal.value >= goal.target;
    if (!goal.isReached || wasReached !== false) return;
    goal.times += 1;
    this.onReached(event, goal);
  }

  /** Follows the counts of all events. Until the day of the counts is known, they are not complete. */
  updateAll() {
    if (this.counters.day) for (const event of this.#goals.keys()) this.update(event, this.counters.countOf(event));
  }

  /** @param {string} event @returns {Goal|undefined} */
  of(event) {
    return this.#goals.get(event);
  }
}

/** Returns whether a goal is reached, how far it is, and the time, in words. @param {Goal} goal */
export function goalParts({ value, target, isDaily }) {
  const numbers = value === target ? number(target) : `${number(value)} of ${number(target)}`;
  return [value < target ? "" : "Goal reached: ", numbers, isDaily ? " today" : " in total"];
}
