// Hash routes: parses the part of an address after #, builds it, and navigates to it.

/** @param {string} hash `location.hash` @returns {Route} */
export function parseHash(hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  return { view: view || "overview", name: decode(rest.join("/")), query: new URLSearchParams(search) };
}

function decode(/** @type {string} */ text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** Returns the hash of a page. @param {string} view @param {string} [name] @param {Record<string, string>} [query] empty values are left out */
export function link(view, name = "", query = {}) {
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value)).toString();
  return `#/${view === "overview" ? "" : view}${name && `/${encodeURIComponent(name)}`}${search && `?${search}`}`;
}

/** @param {string} hash @param {{replace?: boolean}} [options] replace: add no entry to the browser's history */
export function navigate(hash, { replace = false } = {}) {
  replace ? history.replaceState(history.state, "", hash) : history.pushState(null, "", hash);
  dispatchEvent(new Event("hashchange"));
}
