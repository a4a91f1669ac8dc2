// A classic script in <head>, which requests today's counts before the modules arrive. On a slow network, their sum is shown seconds earlier.
{
  let key = "";
  try { key = sessionStorage.getItem("tally-key") ?? localStorage.getItem("tally-key") ?? ""; } catch { /* Without storage, there is no key. */ }
  const options = /** @type {RequestInit} */ ({ priority: "high", headers: key ? { Authorization: `Bearer ${key}` } : {} });
  window.firstCounts = fetch("events", options).then((response) => (response.ok ? response.json() : null)).catch(() => null);
  window.firstCounts.then((counts) => {
    const element = document.getElementById("first-count");
    const text = Object.values(counts ?? {}).reduce((sum, count) => sum + count, 0).toLocaleString();
    if (!element || element.textContent || text === "0") return;
    element.style.setProperty("--len", String(Math.max(6, text.length)));
    element.textContent = text;
  });
}
