// Finds names by their parts, in any case and in any Unicode form.

const fold = (/** @type {string} */ text) => text.normalize().toLowerCase();

/** Returns a function that ranks a name: 2 if it begins with the query, 1 if it has all of its words, 0 if not. @param {string} query */
export function createSearch(query) {
  const wanted = fold(query.trim());
  const words = wanted.split(/\s+/);
  return (/** @type {string} */ name) => {
    const folded = fold(name);
    return folded.startsWith(wanted) ? 2 : Number(words.every((word) => folded.includes(word)));
  };
}
