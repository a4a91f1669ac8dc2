"""Requests that offer an upgrade: WebSocket handshakes are accepted, and all other offers are ignored."""

import httptools
from uvicorn.protocols.http import httptools_impl


class UpgradeProtocol(httptools_impl.HttpToolsProtocol):
    """uvicorn's HTTP protocol, but a request with an offer that is ignored (RFC 9110, 7.8) keeps its body.

    The parser stops after the head of a request that offers an upgrade. In uvicorn, such a request has no body, and its
    body is parsed as the next request.
    """

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def _feed(self, data: bytes) -> bytes:
        """Parse data. If a request in it has an offer that is ignored, return that request without it, and the rest."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                request = self._head_without_offer() + data[stop.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                return request
        return b""

    def _head_without_offer(self) -> bytes:
        """Return the head that was parsed, without the header Upgrade. What is in Connection has then no effect."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))

    def _should_upgrade(self) -> bool:
        """Return whether a request that offers an upgrade is a WebSocket handshake (RFC 6455, 4.1)."""
        offers = [value.lower() for name, value in self.headers if name == b"upgrade"]
        headers = dict(self.headers)
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        is_get = self.parser.get_method() == b"GET" and self.parser.get_http_version() == "1.1"
        return is_get and not has_body and offers == [b"websocket"]

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("Tally is not a proxy")  # there is no request after it on this connection
        if not self.parser.should_upgrade() or self._should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
