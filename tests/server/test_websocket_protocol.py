"""The WebSocket protocol of `python -m app`: an application may write frames that it prepared itself."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
import websockets
from uvicorn.protocols.utils import ClientDisconnected
from websockets.frames import Frame, Opcode

from app.server.websocket_protocol import PREPARED_FRAME_EXTENSION, SharedFrameProtocol
from tests.support.servers import eventually

PROTOCOL = "app/server/websocket_protocol.py"
FRAME = Frame(Opcode.TEXT, b"prepared").serialize(mask=False)


@pytest.mark.fails_on_mutant(
    "a frame is written to a full buffer",
    PROTOCOL,
    "        if not self.writable.is_set():\n            return False\n",
    "",
)
@pytest.mark.fails_on_mutant(
    "a frame is written to a closed connection",
    PROTOCOL,
    "        if self.disconnected or self.conn.state is not State.OPEN:\n            raise ClientDisconnected\n",
    "",
)
async def test_a_prepared_frame_is_written_only_if_the_client_can_take_it() -> None:
    found: dict[str, Any] = {}

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        send_frame = scope["extensions"][PREPARED_FRAME_EXTENSION]
        await receive()
        await send({"type": "websocket.accept"})
        found["free"] = send_frame(FRAME)
        send_frame.__self__.pause_writing()
        found["full"] = send_frame(FRAME)
        send_frame.__self__.resume_writing()
        await send({"type": "websocket.send", "text": "ordinary"})
        await receive()
        with pytest.raises(ClientDisconnected):
            send_frame(FRAME)
        found["closed"] = True

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, ws=SharedFrameProtocol, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve([listener]))
    await eventually(lambda: server.started)
    async with websockets.connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/") as client:
        received = [await client.recv() for _ in range(2)]
    await eventually(lambda: "closed" in found)
    server.should_exit = True
    await running
    assert received == ["prepared", "ordinary"]
    assert found == {"free": True, "full": False, "closed": True}
