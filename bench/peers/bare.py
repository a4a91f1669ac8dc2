"""The limit of one uvicorn process: an ASGI callable that counts in a dict and checks nothing."""

from collections import Counter
from typing import Any

import msgspec

counts: Counter[str] = Counter()
HEADERS = [(b"content-type", b"application/json")]


async def app(scope: dict[str, Any], _receive: object, send: Any) -> None:
    if scope["method"] == "POST":
        name = scope["path"].removeprefix("/event/")
        counts[name] += 1
        body = b'{"eventName":"%b","count":%d}' % (name.encode(), counts[name])
    else:
        body = msgspec.json.encode(counts)
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, _length(body)]})
    await send({"type": "http.response.body", "body": body})


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(body)
