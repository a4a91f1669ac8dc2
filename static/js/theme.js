// Classic script in <head>: what the reader chose has to be in place before the first paint.
try {
  const asked = new URLSearchParams(location.search).get("theme");
  for (const name of ["theme", "density"]) {
    const stored = (name === "theme" && asked) || localStorage.getItem(`tally-${name}`);
    if (stored) document.documentElement.dataset[name] = stored;
  }
} catch { /* a blocked storage means the system's theme */ }
