"""Count hits in Tally from Python, each of them once, however often it has to be sent. Needs httpx."""

import os
import time
from urllib.parse import quote

import httpx

TRIES = 6
api_key = os.environ.get("TALLY_KEY")
client = httpx.Client(
    base_url=os.environ.get("TALLY_URL", "http://127.0.0.1:8000"),
    headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
    timeout=5,
)


def count(event: str, key: str, **hit: object) -> dict[str, object]:
    """Count a hit, and return the new counts. `key` belongs to what you count, such as an order number.

    Raises httpx.HTTPStatusError if Tally rejects the hit, and httpx.HTTPError after six tries.
    """
    for attempt in range(1, TRIES + 1):
        try:
            response = client.post(f"/event/{quote(event, safe='')}", json=hit, headers={"Idempotency-Key": key})
            response.raise_for_status()
            return response.json()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if attempt == TRIES or (status < 500 and status != 429):
                raise
        except httpx.TransportError:
            if attempt == TRIES:
                raise
        time.sleep(0.1 * 2**attempt)
    raise AssertionError("the last try returns or raises")


if __name__ == "__main__":
    print(count("order", "order-19", by=3, user="u-17"))
