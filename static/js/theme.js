// Classic script in <head>: the stored theme has to be in place before the first paint.
try {
  const stored = localStorage.getItem("tally-theme");
  if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
} catch { /* a blocked storage means the system's theme */ }
