// @ts-check
// The model: what is counted, how often, and what changed since the last paint.

export class Counters {
  /** @type {string[]} */ names = [];
  /** @type {number[]} */ counts = [];
  /** Server time of the next reset in ms, or null when there is none. @type {number|null} */ resetsAt = null;
  total = 0;
  /** @type {Set<number>} */ #dirty = new Set();
  #remade = false;

  /** A whole new state; everything has to be looked at again. @param {string[]} names @param {number[]} counts */
  replace(names, counts) {
    this.names = names;
    this.counts = counts;
    this.total = counts.reduce((sum, count) => sum + count, 0);
    this.#dirty = new Set(names.keys());
    this.#remade = true;
  }

  /**
   * Absolute counts by index; new names take the next indices.
   * @param {[number, number][]} changes @param {string[]} added
   * @returns {number} hits since the previous message
   */
  apply(changes, added) {
    const before = this.total;
    for (const name of added) this.counts[this.names.push(name) - 1] = 0;
    for (const [index, count] of changes) {
      this.total += count - this.counts[index];
      this.counts[index] = count;
      this.#dirty.add(index);
    }
    return this.total - before;
  }

  /** Hands over what changed and starts a new list. */
  take() {
    const taken = { dirty: this.#dirty, remade: this.#remade };
    [this.#dirty, this.#remade] = [new Set(), false];
    return taken;
  }
}
