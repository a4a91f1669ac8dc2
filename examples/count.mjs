// Count hits in Tally from Node, each of them once, however often it has to be sent. It needs no packages.
const TRIES = 6;
const address = process.env.TALLY_URL ?? "http://127.0.0.1:8000";
const authorization = process.env.TALLY_KEY && { Authorization: `Bearer ${process.env.TALLY_KEY}` };

/**
 * Count a hit, and return the new counts. `key` belongs to what you count, such as an order number.
 * Throws an Error if Tally rejects the hit, or after six tries.
 */
export async function count(event, key, hit = {}) {
  const url = `${address}/event/${encodeURIComponent(event)}`;
  const request = { method: "POST", headers: { ...authorization, "Idempotency-Key": key }, body: JSON.stringify(hit) };
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(url, { ...request, signal: AbortSignal.timeout(5000) }).catch(() => null);
    const text = await response?.text().catch(() => null);
    if (response?.ok && text) return JSON.parse(text);
    const rejected = response && response.status < 500 && response.status !== 429;
    if (rejected || attempt === TRIES) throw new Error(text || "no response");
    await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** attempt));
  }
}

if (import.meta.filename === process.argv[1]) {
  console.log(await count("order", "order-18", { by: 3, user: "u-17" }));
}
