"""WebSockets on uvicorn: the application may write a frame that it prepared once for many clients."""

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

PREPARED_FRAME_EXTENSION = "tally.prepared_frame"


class SharedFrameProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which also offers `scope["extensions"]["tally.prepared_frame"]`.

    The value is `send_frame`: a callable that takes a frame (bytes) and returns whether it was written. Encoding a
    frame costs as much as sending it, and ASGI has no message for an encoded frame, nor one that never waits.
    """

    async def run_asgi(self) -> None:
        self.scope["extensions"][PREPARED_FRAME_EXTENSION] = self.send_frame  # type: ignore[assignment] # uvicorn declares only dicts
        await super().run_asgi()

    def send_frame(self, frame: bytes) -> bool:
        """Write a complete, unmasked RFC 6455 frame if the socket can take it now.

        Returns False and writes nothing while the transport's buffer is over its high-water mark. Raises
        ClientDisconnected, an OSError, if the connection is closed or closing.
        """
        if not self.writable.is_set():
            return False
        if self.disconnected or self.conn.state is not State.OPEN:
            raise ClientDisconnected
        self.transport.write(frame)
        return True
