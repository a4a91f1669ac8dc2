// The counts of closed days, and a comparison of two of them.

/** Adds up the parts of a day. @param {ClosedDay} day @returns {Map<string, number>} */
export function countsOfDay({ parts }) {
  /** @type {Map<string, number>} */ const sums = new Map();
  for (const { counts } of parts) for (const [name, n] of Object.entries(counts)) sums.set(name, (sums.get(name) ?? 0) + n);
  return sums;
}

/** Returns a row for each event of either day, the largest counts first. @param {Map<string, number>} a @param {Map<string, number>|null} b */
export function compareDays(a, b) {
  const names = new Set([...a.keys(), ...(b?.keys() ?? [])]);
  return [...names].map((name) => ({ name, count: a.get(name) ?? 0, otherCount: b?.get(name) ?? 0 }))
    .sort((x, y) => y.count - x.count || y.otherCount - x.otherCount || (x.name < y.name ? -1 : 1));
}
