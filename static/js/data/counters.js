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
    this.renew();
  }

  /** What a view that has just opened has to look at: everything. */
  renew() {
    this.#dirty = new Set(this.names.keys());
    this.#remade = true;
  }

  /**
   * Absolute counts by index, and new names, which take the next indices; returns the hits since the previous message.
   * @param {[number, number][]} changes @param {string[]} added
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

  /** Those with the largest counts, in one pass. @param {number} size @returns {Row[]} */
  top(size) {
    /** @type {number[]} */ const best = [];
    this.counts.forEach((count, index) => {
      if (best.length === size && count <= this.counts[best[size - 1]]) return;
      // Equal counts keep the server's order, so rows do not swap for nothing.
      const at = best.findIndex((other) => this.counts[other] < count);
      best.splice(at < 0 ? best.length : at, 0, index);
      if (best.length > size) best.pop();
    });
    return best.map((index) => ({ name: this.names[index], count: this.counts[index] }));
  }

  /** @param {string} name */
  of(name) {
    return this.counts[this.names.indexOf(name)] ?? 0;
  }

  /** Hands over what changed and starts a new list. */
  take() {
    const taken = { dirty: this.#dirty, remade: this.#remade };
    [this.#dirty, this.#remade] = [new Set(), false];
    return taken;
  }
}
