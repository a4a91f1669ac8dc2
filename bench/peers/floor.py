"""The cost below any Python server: uvloop reads, httptools parses, a dict counts, and one write responds.

It ignores methods, headers, bodies and errors. What a hit costs more than here is the work of its server.
"""

import asyncio
import os
from collections import Counter
from typing import cast

import httptools
import msgspec
import uvloop

counts: Counter[str] = Counter()


class Floor(asyncio.Protocol):
    """A connection. A path below /event/ is a hit, and any other is a read of all counts."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        if self._url.startswith(b"/event/"):
            name = self._url[7:].decode()
            counts[name] += 1
            body = b'{"eventName":"%b","count":%d}' % (name.encode(), counts[name])
        else:
            body = msgspec.json.encode(counts)
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
