// The reader's preferences, stored in this browser, and the API key, stored in this tab only.

/** Returns null if the browser blocks the storage. @param {() => Storage} storage */
function openStorage(storage) {
  try { return storage(); } catch { return null; }
}

const browserStorage = openStorage(() => localStorage);
const tabStorage = openStorage(() => sessionStorage);
/** @type {Record<string, string>} */ const DEFAULTS = { theme: "system", density: "comfortable", shortcuts: "on", announce: "0", pins: "[]" };
/** Chosen since the page opened, because the storage may be blocked. @type {Record<string, string>} */ const currentPrefs = {};
let currentKey = tabStorage?.getItem("tally-key") ?? "";

export const getPref = (/** @type {string} */ name) => currentPrefs[name] ?? browserStorage?.getItem(`tally-${name}`) ?? DEFAULTS[name];

/** @param {string} name @param {string} value */
export function setPref(name, value) {
  currentPrefs[name] = value;
  value === DEFAULTS[name] ? browserStorage?.removeItem(`tally-${name}`) : browserStorage?.setItem(`tally-${name}`, value);
  if (name === "theme" || name === "density") document.documentElement.dataset[name] = value;
}

/** Calls `run` when another tab has changed a preference. @param {(name: string) => void} run */
export function onPrefChange(run) {
  addEventListener("storage", ({ key }) => {
    const name = key?.replace("tally-", "") ?? "";
    if (!Object.hasOwn(DEFAULTS, name)) return;
    delete currentPrefs[name];
    if (name === "theme" || name === "density") document.documentElement.dataset[name] = getPref(name);
    run(name);
  });
}

/** @returns {Set<string>} the names of pinned events */
export function pinnedNames() {
  try { return new Set(JSON.parse(getPref("pins"))); } catch { return new Set(); }
}

export const apiKey = () => currentKey;

/** @param {string} value an API key, or "" to forget it */
export function setApiKey(value) {
  currentKey = value;
  value ? tabStorage?.setItem("tally-key", value) : tabStorage?.removeItem("tally-key");
}
