// The reader's preferences, stored in this browser, and the API key, stored in this tab or, if the reader chooses that, in this browser.

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

/** @type {Record<string, string>} */ const DEFAULTS = { theme: "system", density: "comfortable", shortcuts: "on", announce: "0", notify: "off", pins: "[]" };
/** Chosen since the page opened, because the storage may be blocked or full. @type {Record<string, string>} */ const currentPrefs = {};
const rememberedKey = read(browserStorage, "tally-key") ?? "";
let currentKey = read(tabStorage, "tally-key") ?? rememberedKey;
let isRemembered = Boolean(currentKey) && currentKey === rememberedKey;

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

export const isKeyRemembered = () => isRemembered;

/** @param {string} value an API key, or "" to forget it @param {{remember?: boolean}} [options] remember: also after the tab is closed */
export function setApiKey(value, { remember = false } = {}) {
  currentKey = value;
  isRemembered = remember;
  write(tabStorage, "tally-key", value);
  write(browserStorage, "tally-key", remember ? value : "");
}
