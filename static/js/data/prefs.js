// What this reader chose, kept in this browser; and the key, kept in this tab alone.

/** A blocked storage only loses what it was to keep. @param {() => Storage} storage */
function opened(storage) {
  try { return storage(); } catch { return null; }
}

const here = opened(() => localStorage);
const tab = opened(() => sessionStorage);
/** @type {Record<string, string>} */ const fallback = { theme: "system", density: "comfortable", shortcuts: "on", announce: "0", pins: "[]" };
/** @type {Record<string, string>} */ const chosen = {};
let secret = tab?.getItem("tally-key") ?? "";

/** @param {string} name */
export const pref = (name) => chosen[name] ?? here?.getItem(`tally-${name}`) ?? fallback[name];

/** @param {string} name @param {string} value */
export function choose(name, value) {
  chosen[name] = value;
  value === fallback[name] ? here?.removeItem(`tally-${name}`) : here?.setItem(`tally-${name}`, value);
  if (name === "theme" || name === "density") document.documentElement.dataset[name] = value;
}

/** @returns {Set<string>} names of events that stand first */
export function pins() {
  try { return new Set(JSON.parse(pref("pins"))); } catch { return new Set(); }
}

export const key = () => secret;

/** @param {string} value */
export function useKey(value) {
  secret = value;
  value ? tab?.setItem("tally-key", value) : tab?.removeItem("tally-key");
}
