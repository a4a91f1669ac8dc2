// The reader's preferences, stored in this browser, and the API key, stored in this tab only.

const browserStorage = () => localStorage;
const tabStorage = () => sessionStorage;

/** Returns null if the browser blocks the storage. @param {() => Storage} storage @param {string} name */
function read(storage, name) {
  try { return storage().getItem(name); } catch { return null; }
}

/** Does nothing if the storage is blocked or full. @param {() => Storage} storage @param {string} name @param {string} value "" removes it */
function write(storage, name, value) {
  try { value ? storage().setItem(name, value) : storage().removeItem(name); } catch { /* It is kept until the page closes. */ }
}

/** @type {Record<string, string>} */ const DEFAULTS = { theme: "system", density: "comfortable", shortcuts: "on", announce: "0", pins: "[]" };
/** Chosen since the page opened, because the storage may be blocked or full. @type {Record<string, string>} */ const currentPrefs = {};
let currentKey = read(tabStorage, "tally-key") ?? "";

export const getPref = (/** @type {string} */ name) => currentPrefs[name] ?? read(browserStorage, `tally-${name}`) ?? DEFAULTS[name];

/** @param {string} name @param {string} value */
export function setPref(name, value) {
  currentPrefs[name] = value;
  write(browserStorage, `tally-${name}`, value === DEFAULTS[name] ? "" : value);
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
  write(tabStorage, "tally-key", value);
}
