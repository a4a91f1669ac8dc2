"""What a page may say over Socket.IO, which is next to nothing: all else is refused before the libraries see it."""

import re
from typing import Any

import socketio
from socketio.packet import CONNECT, DISCONNECT, EVENT
from starlette.exceptions import HTTPException

INBOUND_BYTES_MAX = 16_384  # bytes at once

# Whatever else is sent, engineio would log with a traceback, or wait for the client for good.
_PACKET = "(?:[13]|4[^\x1e])[^\x1e]*"
_POSTED = re.compile(rf"({_PACKET}(\x1e{_PACKET}){{0,15}})?")
_FRAME = re.compile("[1235].*|4.+", re.DOTALL)


class InboundPacket(socketio.packet.Packet):  # type: ignore[misc] # socketio ships no types
    """What clients may say: nothing binary, and no event but `resync`, for python-socketio takes some for its own."""

    packet_type: int
    data: Any

    def __init__(self, *fields: Any, encoded_packet: Any = None, **more: Any) -> None:
        super().__init__(*fields, encoded_packet=encoded_packet, **more)
        if encoded_packet in {"", b""}:  # which python-socketio takes for none
            self.decode("")

    def decode(self, encoded_packet: str) -> int:
        try:
            super().decode(encoded_packet)
            spoken = self.packet_type in {CONNECT, DISCONNECT} or (self.packet_type, self.data[0]) == (EVENT, "resync")
        except Exception:  # noqa: BLE001 # whatever nonsense it is
            spoken = False
        if not spoken:
            self.packet_type, self.data = EVENT, ["ignored"]
        return 0


def heard(scope: Any, receive: Any) -> Any:
    """The `receive` of a client, as far as engineio knows what to do with it. Raises HTTPException for the rest."""
    if scope["type"] == "websocket":
        return lambda: _frame_from(receive)
    if scope["method"] not in {"GET", "POST", "OPTIONS"}:
        raise HTTPException(405, headers={"Allow": "GET, OPTIONS, POST"})
    return receive if scope["method"] != "POST" else lambda: _post_from(receive)


async def _frame_from(receive: Any) -> Any:
    message = await receive()
    text = message.get("text")
    return message if text is None or _FRAME.fullmatch(text) else {"type": "websocket.disconnect", "code": 1007}


async def _post_from(receive: Any) -> Any:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body ended early")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > INBOUND_BYTES_MAX:
            raise HTTPException(413, f"a body has at most {INBOUND_BYTES_MAX} bytes")
    try:
        sound = _POSTED.fullmatch(body.decode())
    except UnicodeDecodeError:
        sound = None
    if not sound:
        raise HTTPException(400, "this is not what Engine.IO says")
    return {"type": "http.request", "body": body}
