"""Validates inbound Socket.IO traffic.

Clients may connect, disconnect, answer pings and send `resync`. Anything else is rejected before python-engineio and
python-socketio parse it, because they would log a traceback, wait for the client for ever, or obey it.
"""

import asyncio
import re
from typing import Any

import socketio
from socketio.packet import CONNECT, DISCONNECT, EVENT
from starlette.exceptions import HTTPException

INBOUND_BYTES_MAX = 16_384  # in one message or POST
POSTED_PACKETS_MAX = 16
POST_SECONDS = 60.0  # in which the body of a POST has to arrive

# Of Engine.IO's packet types: close (1), pong (3) and message (4); in a POST they are separated by \x1e. None may begin
# with a JSON array or object, which python-engineio would parse, with a traceback if it is nested too deeply.
_PACKET = r"(?:[13]\w*|4[^\x1e\s\[{][^\x1e]*)"
_POST = re.compile(rf"({_PACKET}(\x1e{_PACKET}){{0,{POSTED_PACKETS_MAX - 1}}})?")
# A WebSocket also has ping (2), as a probe, and upgrade (5).
_FRAME = re.compile(r"[1235]\w*|4[^\s\[{].*", re.DOTALL)
_INVALID_FRAME_PAYLOAD = 1007


class InboundPacket(socketio.packet.Packet):  # type: ignore[misc] # socketio ships no types
    """A Socket.IO packet that carries nothing binary and no event but `resync`; any other becomes `ignored`.

    python-socketio would treat events such as `connect` from a client as its own.
    """

    packet_type: int
    data: Any

    def __init__(self, *fields: Any, encoded_packet: Any = None, **more: Any) -> None:
        super().__init__(*fields, encoded_packet=encoded_packet, **more)
        if encoded_packet in {"", b""}:  # python-socketio does not decode it, and would treat it as an event
            self.decode("")

    def decode(self, encoded_packet: str) -> int:
        """Decode a packet. Returns 0, the number of binary attachments that follow."""
        try:
            super().decode(encoded_packet)
            is_event = self.packet_type not in {CONNECT, DISCONNECT}
            is_valid = not is_event or (self.packet_type, self.data[0]) == (EVENT, "resync")
        except Exception:  # noqa: BLE001 # a client can send anything
            is_valid = False
        if not is_valid:
            self.packet_type, self.data = EVENT, ["ignored"]
        return 0


def guard_receive(scope: Any, receive: Any) -> Any:
    """Return an ASGI `receive` that returns only messages that python-engineio can handle.

    Raises HTTPException, here or when it is called: 405 for another method, 400 or 413 for an invalid body.
    """
    if scope["type"] == "websocket":
        return lambda: _receive_frame(receive)
    if scope["method"] not in {"GET", "POST", "OPTIONS"}:
        raise HTTPException(405, headers={"Allow": "GET, OPTIONS, POST"})
    return receive if scope["method"] != "POST" else lambda: _receive_post(receive)


async def _receive_frame(receive: Any) -> Any:
    message = await receive()
    text = message.get("text")
    if text is None or _FRAME.fullmatch(text):
        return message
    return {"type": "websocket.disconnect", "code": _INVALID_FRAME_PAYLOAD}


async def _receive_post(receive: Any) -> Any:
    try:
        async with asyncio.timeout(POST_SECONDS):
            body = await _read_body(receive)
    except TimeoutError:
        raise HTTPException(400, f"the body did not arrive within {POST_SECONDS:g} s; send it again") from None
    try:
        is_valid = _POST.fullmatch(body.decode())
    except UnicodeDecodeError:
        is_valid = None
    if not is_valid:
        raise HTTPException(400, "body: not a valid Engine.IO payload")
    return {"type": "http.request", "body": body}


async def _read_body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the connection closed before the whole body arrived; send it again")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > INBOUND_BYTES_MAX:
            raise HTTPException(413, f"the body is too large: at most {INBOUND_BYTES_MAX // 1024} KiB")
    return body
