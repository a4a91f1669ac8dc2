// A classic script in <head>, which applies the reader's theme and density before the first paint.
try {
  const requested = new URLSearchParams(location.search).get("theme");
  for (const name of ["theme", "density"]) {
    const value = (name === "theme" && requested) || localStorage.getItem(`tally-${name}`);
    if (value) document.documentElement.dataset[name] = value;
  }
} catch { /* Without storage, the system's theme applies. */ }
