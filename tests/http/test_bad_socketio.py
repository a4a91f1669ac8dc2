"""Bad Engine.IO and Socket.IO packets: rejected or ignored, never logged, and no other client is affected."""

import json

import pytest
import websockets

from tests.http.problems import assert_client_error
from tests.support.servers import AS_ADMIN, RunningApp

POLL = "/socket.io/?EIO=4&transport=polling"
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"
REJECTED = {
    b"4",
    b"x",
    b"9",
    b"0",
    b"6",
    b"2probe",
    b"5",
    b"b!!!",
    b"d=",
    b"d=%",
    b"4\xff",
    b"\x1e\x1e",
    b"\x1e".join([b"3"] * 17),
}
REJECTED |= {"४".encode(), b"1\x1e0", b"3" * 16_385}
# python-engineio would parse the JSON of these.
NESTED = {
    kind + space + opening * 8000 for kind in (b"1", b"3", b"4") for space in (b"", b" ") for opening in (b"[", b'{"":')
}
REJECTED |= NESTED
IGNORED = {
    b"",
    b"42" + b"[" * 8000,
    b"41234567",
    b'451-["a",{"_placeholder":true,"num":0}]',
    b"40{",
    b"40/" + b"n" * 5000,
}
IGNORED |= {
    b'42["resync"]',
    b"43[]",
    b"42[NaN]",
    b'42["connect"]',
    b'42/live,7["resync",1]',
    b"41",
    "4²".encode(),
    b"44{}",
}
IGNORED |= {b'42/x\nERROR forged,["resync"]', b"40/x\nERROR forged,", b"41/x\nERROR forged,", b'42["ERROR forged"]'}
SESSIONS = ["", "&sid=", "&sid=x", "&sid=%0aERROR%20forged", "&sid=%ff", "&sid=a&sid=b", "&j=x"]


@pytest.mark.fails_on_mutant(
    "invalid packets reach engineio",
    "app/live/socketio.py",
    "receive = guard_receive(scope, receive)",
    "guard_receive(scope, receive)",
)
@pytest.mark.fails_on_mutant(
    "a poll is parsed as JSON", "app/live/inbound.py", "[13]\\w*|4[^\\x1e\\s\\[{]", "[13]|4[^\\x1e]"
)
@pytest.mark.fails_on_mutant(
    "packets are logged", "app/live/socketio.py", "_packets.setLevel(logging.ERROR)", "_packets.setLevel(logging.INFO)"
)
async def test_bad_polls(tally: RunningApp, quiet: None) -> None:
    async with tally.client() as client:

        async def session() -> str:
            return f"{POLL}&sid={json.loads((await client.get(POLL)).text[1:])['sid']}"

        for packet in (*REJECTED, *IGNORED):
            path = await session()
            assert (await client.post(path, content=packet)).status_code in (
                {400, 413} if packet in REJECTED else {200}
            ), packet
            assert (await client.post(path, content=b"3")).status_code == 200
        path = await session()
        assert (await client.post(path, content=b"1")).status_code == 200
        for method in ("POST", "GET"):
            assert_client_error(
                await client.request(method, path, content=b"3"), counted="no" if method == "POST" else None
            )
        for wrong in SESSIONS[1:]:
            for method in ("GET", "POST", "OPTIONS", "DELETE", "PATCH"):
                response = await client.request(method, POLL + wrong, content=b"3" if method == "POST" else b"")
                assert 400 <= response.status_code < 500 or (method, wrong) in {("GET", "&sid="), ("OPTIONS", "&sid=")}
        for query in ("", "EIO=3&transport=polling", "transport=polling", "%ff=%ff", "EIO=4&transport=websocket"):
            assert (await client.get(f"/socket.io/?{query}")).status_code == 400


ENDING = ["", "x", "9", "0", "6", "4", "b!!!", "d=", "\u096a", "x" * 20_000, "4" + "x" * 20_000]
ENDING += [packet.decode() for packet in sorted(NESTED)] + ["2" + "[" * 8000, "5" + "[" * 8000]


@pytest.mark.fails_on_mutant(
    "a frame is parsed as JSON", "app/live/inbound.py", "[1235]\\w*|4[^\\s\\[{].*", "[1235].*|4.+"
)
@pytest.mark.fails_on_mutant(
    "an empty message is not a message", "app/live/inbound.py", 'if encoded_packet in {"", b""}:', "if False:"
)
async def test_bad_frames(tally: RunningApp, quiet: None) -> None:
    """A bad frame ends its connection or is ignored. Other connections are not affected."""
    url = tally.url.replace("http", "ws", 1) + WEBSOCKET
    async with websockets.connect(url) as watcher, tally.client() as client:
        await watcher.recv()
        await watcher.send("40")
        await watcher.recv()
        for frame in ENDING:
            async with websockets.connect(url) as other:
                await other.recv()
                await other.send(frame)
                with pytest.raises(websockets.ConnectionClosed):
                    await other.recv()
        for ignored in (*(frame.decode() for frame in IGNORED if frame), *IGNORED, "2", "2probe", "5", "3", b"\x00"):
            async with websockets.connect(url) as other:
                await other.recv()
                await other.send(ignored)
        await client.post("/event/known", json={"by": 1})
        message = ""
        while not message.startswith("42"):
            message = await watcher.recv()
        assert message == '42["update",{"eventName":"known","count":8}]'
        await client.put("/event/known", json={"count": 7, "total": 7}, headers=AS_ADMIN)
