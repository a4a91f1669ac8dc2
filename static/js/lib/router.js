// What the part of an address behind # asks for.

/** @param {string} hash as `location.hash` has it @returns {Route} */
export function parse(hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  return { view: view || "overview", name: decode(rest.join("/")), query: new URLSearchParams(search) };
}

/** @param {string} text */
function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** @param {string} view @param {string} [name] @param {Record<string, string>} [query] empty values are left out */
export function link(view, name = "", query = {}) {
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value)).toString();
  return `#/${view === "overview" ? "" : view}${name && `/${encodeURIComponent(name)}`}${search && `?${search}`}`;
}

/** Goes there at once. @param {string} hash @param {boolean} [anew] as a step of its own, which Back takes back */
export function go(hash, anew = true) {
  history[anew ? "pushState" : "replaceState"](null, "", hash);
  dispatchEvent(new Event("hashchange"));
}
