// Closed days: all their parts together, and two of them side by side. Pure.

/** A day's counts, all its parts together. @param {ClosedDay} day @returns {Map<string, number>} */
export function sumOf({ parts }) {
  /** @type {Map<string, number>} */ const sum = new Map();
  for (const { counts } of parts) for (const [name, n] of Object.entries(counts)) sum.set(name, (sum.get(name) ?? 0) + n);
  return sum;
}

/** Largest first, with what the other day has of it. @param {Map<string, number>} a @param {Map<string, number>|null} b */
export function sideBySide(a, b) {
  const names = new Set([...a.keys(), ...(b?.keys() ?? [])]);
  return [...names].map((name) => ({ name, count: a.get(name) ?? 0, other: b?.get(name) ?? 0 }))
    .sort((x, y) => y.count - x.count || y.other - x.other || (x.name < y.name ? -1 : 1));
}
