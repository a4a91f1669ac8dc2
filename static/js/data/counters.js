// Today's counts by event, and which of them changed since the last paint.

export class Counters {
  /** @type {string[]} */ names = [];
  /** @type {number[]} */ counts = [];
  /** Hits that arrived live since the page opened, by event. The hits in a snapshot may be older. @type {number[]} */ received = [];
  /** Server time of the next reset in ms, or null if there is none. @type {number|null} */ resetsAt = null;
  /** The server's day (ISO 8601), or "" until a snapshot has it. */
  day = "";
  total = 0;
  /** The last day that is over, and its counts by event. @type {{day: string, counts: Map<string, number>}|null} null until it is loaded */ lastDay = null;
  #changes = { dirty: /** @type {Set<number>} */ (new Set()), full: false };

  /** Replaces all counts. @param {string[]} names @param {number[]} counts */
  replace(names, counts) {
    const received = new Map(this.names.map((name, index) => [name, this.received[index]]));
    this.received = names.map((name) => received.get(name) ?? 0);
    this.names = names;
    this.counts = counts;
    this.total = counts.reduce((sum, count) => sum + count, 0);
    this.markAllDirty();
  }

  /** Makes the next `drain` return every event, for example for a page that has just opened. */
  markAllDirty() {
    this.#changes = { dirty: new Set(this.names.keys()), full: true };
  }

  /** Applies absolute counts by index; new names take the next indices. Returns the new hits. @param {[number, number][]} changes @param {string[]} newNames */
  apply(changes, newNames) {
    let hits = 0;
    for (const name of newNames) {
      this.names.push(name);
      this.counts.push(0);
      this.received.push(0);
    }
    for (const [index, count] of changes) {
      const added = count - this.counts[index];
      this.total += added;
      this.received[index] += Math.max(0, added); // Less than before is a correction.
      hits += Math.max(0, added);
      this.counts[index] = count;
      this.#changes.dirty.add(index);
    }
    return hits;
  }

  /** Returns the events with the largest counts, in one pass. @param {number} size @returns {Row[]} */
  top(size) {
    /** @type {number[]} */ const best = [];
    this.counts.forEach((count, index) => {
      if (best.length === size && count <= this.counts[best[size - 1]]) return;
      // Equal counts keep the server's order, so rows do not swap for nothing.
      const rank = best.findIndex((other) => this.counts[other] < count);
      best.splice(rank < 0 ? best.length : rank, 0, index);
      if (best.length > size) best.pop();
    });
    return best.map((index) => ({ name: this.names[index], count: this.counts[index] }));
  }

  countOf(/** @type {string} */ name) {
    return this.counts[this.names.indexOf(name)] ?? 0;
  }

  receivedOf(/** @type {string} */ name) {
    return this.received[this.names.indexOf(name)] ?? 0;
  }

  /** Returns the indices that changed, and whether `replace` or `markAllDirty` was called; then forgets them. */
  drain() {
    const changes = this.#changes;
    this.#changes = { dirty: new Set(), full: false };
    return changes;
  }
}
