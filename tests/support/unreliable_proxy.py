"""An HTTP proxy in front of Tally that loses responses, rejects requests, or redirects them."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.servers import Process

LOST = "response lost"
# Where a status redirects a POST to: the same path, as from http to https, or a page.
SIGN_IN = "/sign-in"
REDIRECTS = {301: "", 302: SIGN_IN}


class UnreliableProxy(ThreadingHTTPServer):
    """It treats one POST after the other as `faults` says: LOST, or a status that it responds with."""

    def __init__(self, port: int, *faults: str | int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tally_port, self.faults, self.posts = port, list(faults), 0


class _Handler(BaseHTTPRequestHandler):
    server: UnreliableProxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.posts += 1
        fault = self.server.faults.pop(0) if self.server.faults else None
        status, answer = (fault, b"{}") if isinstance(fault, int) else self._forward(body)
        if fault != LOST:
            self._respond(status, answer)

    def do_GET(self) -> None:
        """Answers a client that has followed a redirect."""
        self._respond(*((200, b"<!doctype html>Sign in") if self.path == SIGN_IN else self._forward(b"")))

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.tally_port)
        connection.request(self.command, self.path, body, {**self.headers, "Connection": "close"})
        with connection.getresponse() as response:
            return response.status, response.read()

    def _respond(self, status: int, answer: bytes) -> None:
        self.send_response(status)
        if status in REDIRECTS:
            self.send_header("Location", REDIRECTS[status] or self.path)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def unreliable(tally: Process, *faults: str | int) -> Iterator[UnreliableProxy]:
    """Run the proxy. Its port is `server_port`."""
    with UnreliableProxy(tally.port, *faults) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
