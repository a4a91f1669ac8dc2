// @ts-check
// What this reader chose, kept in this browser; and the key, kept in this tab alone.

/** @param {() => Storage} storage @param {string} name @param {string} value */
function keep(storage, name, value) {
  try {
    value ? storage().setItem(`tally-${name}`, value) : storage().removeItem(`tally-${name}`);
  } catch { /* a blocked storage only loses what it was to keep */ }
}

/** @param {() => Storage} storage @param {string} name */
function kept(storage, name) {
  try { return storage().getItem(`tally-${name}`) ?? ""; } catch { return ""; }
}

const here = () => localStorage;
const tab = () => sessionStorage;
/** @type {Record<string, string>} */ const fallback = { theme: "system", density: "comfortable", shortcuts: "on", announce: "0" };
/** @type {Record<string, string>} */ const chosen = {};
let secret = kept(tab, "key");

/** @param {string} name */
export const pref = (name) => chosen[name] ?? (kept(here, name) || fallback[name] || "");

/** @param {string} name @param {string} value */
export function choose(name, value) {
  chosen[name] = value;
  keep(here, name, value === fallback[name] ? "" : value);
  if (name === "theme" || name === "density") document.documentElement.dataset[name] = value;
}

/** @returns {Set<string>} names of events that stand first */
export function pins() {
  try { return new Set(JSON.parse(pref("pins") || "[]")); } catch { return new Set(); }
}

/** @param {Set<string>} names */
export const pin = (names) => choose("pins", names.size ? JSON.stringify([...names]) : "");

export const key = () => secret;

/** @param {string} value */
export function useKey(value) {
  secret = value;
  keep(tab, "key", value);
}
