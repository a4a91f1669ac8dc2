"""Live clients end on the counts of the store, whatever happens to them, to the nodes' Redis and to the counts."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.buckets import ALL_EVENTS
from app.live import broadcaster, day, messages
from app.live.clients import StreamClient
from app.live.socketio import EngineIoConnection
from app.settings import Settings
from app.stores import offline
from app.stores.base import StoreLimits, StoreUnavailable
from app.stores.redis import RedisStore
from app.stores.redis_url import RedisTarget
from tests.fuzz import TEST_SECONDS, run_episodes
from tests.fuzz.live_clients import InterruptedStream, LossyDashboard
from tests.fuzz.nodes import CALENDAR
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_servers import RedisServer
from tests.support.servers import ADMIN_KEY, AS_ADMIN, RunningApp, SettableClock, eventually, serving

pytestmark = pytest.mark.timeout(TEST_SECONDS)

EVENTS = [f"event {number}" for number in range(12)]
STREAMED = EVENTS[:3]
WORK_SECONDS = 1.5
REFUSAL_RATE = 0.1  # of messages that a client cannot take when the server tries to send them


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few events fill several messages, and a few changes the log, and reconnect soon."""
    monkeypatch.setattr(messages, "MESSAGE_NAMES_MAX", 5)
    monkeypatch.setattr(day, "MESSAGE_NAMES_MAX", 5)
    monkeypatch.setattr(messages, "CHUNK_UPDATES_MAX", 4)
    monkeypatch.setattr(day, "LOG_MAX", 40)
    monkeypatch.setattr(broadcaster, "CLIENTS_AT_ONCE", 2)
    monkeypatch.setattr(offline, "RETRY_SECONDS", 0.05)


@pytest.fixture
def slow_clients(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """Make clients unable to take some messages at once. An episode seeds the returned generator."""
    dice = random.Random()
    for kind in (StreamClient, EngineIoConnection):

        def try_send(self: Any, item: Any, send: Any = kind.try_send) -> bool:
            return dice.random() > REFUSAL_RATE and send(self, item)

        monkeypatch.setattr(kind, "try_send", try_send)
    return dice


@pytest.fixture
def data_losses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The losses that nodes record, because they showed more than Redis has: each lowers counts once more."""
    losses: list[int] = []

    async def record(self: RedisStore, commits: int, record_data_loss: Any = RedisStore.record_data_loss) -> None:
        losses.append(commits)
        await record_data_loss(self, commits)

    monkeypatch.setattr(RedisStore, "record_data_loss", record)
    return losses


class Episode:
    def __init__(self, server: RedisServer, directory: Path, rng: random.Random, data_losses: list[int]) -> None:
        self._server, self._directory, self._rng, self._data_losses = server, directory, rng, data_losses
        self._clock = SettableClock()
        self._nodes: list[RunningApp] = []
        self._clients: list[httpx.AsyncClient] = []  # of each node
        self._proxies: list[FaultProxy] = []
        self._changes: Counter[str] = Counter()  # requests that may have lowered the counts of an event
        self._is_over = False

    async def run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(2):
                proxy = await stack.enter_async_context(FaultProxy(self._server.socket, self._rng.randrange(1000)))
                self._proxies.append(proxy)
                settings = Settings(
                    TALLY_STORE=proxy.url,
                    spool=str(self._directory / f"spool {number}"),
                    admin_keys=ADMIN_KEY,
                    write_limit="100000/second",
                    read_limit="100000/second",
                )
                self._nodes.append(await stack.enter_async_context(serving(settings, self._clock)))
                self._clients.append(await stack.enter_async_context(self._nodes[-1].client()))
                self._clients[-1].headers.update(AS_ADMIN)
            dashboards = [LossyDashboard(random.Random(self._rng.random())) for _ in range(4)]
            streams = [InterruptedStream("/stream"), InterruptedStream("/stream?event=" + "&event=".join(STREAMED))]
            clients = [*dashboards, *streams]
            for client in clients:
                await client.join(self._rng.choice(self._nodes).url)
                stack.push_async_callback(client.leave)
            store = RedisStore(RedisTarget.from_url(self._server.url), StoreLimits(100))
            stack.push_async_callback(store.close)
            await self._work(clients)
            await self._check(store, dashboards, streams)

    async def _work(self, clients: list[LossyDashboard | InterruptedStream]) -> None:
        workers = [self._send_hits, self._send_hits, self._administer, self._disturb_redis]
        work = [worker(random.Random(self._rng.random())) for worker in workers]
        work += [self._disturb_client(client, random.Random(self._rng.random())) for client in clients]
        async with asyncio.TaskGroup() as tasks:
            for worker in work:
                tasks.create_task(worker)
            await asyncio.sleep(WORK_SECONDS)
            self._is_over = True

    async def _request(self, rng: random.Random, method: str, path: str, body: Any = None) -> None:
        """Send a request to a random node. Its outcome does not matter."""
        with contextlib.suppress(httpx.TransportError):
            await rng.choice(self._clients).request(method, path, json=body)

    async def _send_hits(self, rng: random.Random) -> None:
        while not self._is_over:
            amounts = {event: rng.randint(1, 5) for event in rng.sample(EVENTS, rng.choice([1, 1, 3, 12]))}
            await self._request(rng, "POST", "/events", amounts)
            await asyncio.sleep(rng.uniform(0, 0.02))

    async def _administer(self, rng: random.Random) -> None:
        """Change counts; the last change is a reset, while hits go on."""
        end = time.monotonic() + WORK_SECONDS * 0.7
        while time.monotonic() < end:
            await asyncio.sleep(rng.uniform(0, 0.3))
            event = rng.choice(EVENTS)
            what = rng.choice(["correct", "correct", "delete", "reset", "midnight"])
            if what == "midnight":
                self._clock.shift = 86_400
            else:
                await self._change(rng, what, event)
        await self._change(rng, "reset", "")

    async def _change(self, rng: random.Random, what: str, event: str) -> None:
        self._changes.update([event] if event and what != "reset" else EVENTS)
        if what == "correct":
            await self._request(rng, "PUT", f"/event/{event}", {"count": rng.randint(0, 50)})
        elif what == "delete":
            await self._request(rng, "DELETE", f"/event/{event}")
        else:
            await self._request(rng, "POST", "/reset")

    async def _disturb_redis(self, rng: random.Random) -> None:
        while not self._is_over:
            await asyncio.sleep(rng.uniform(0, 0.3))
            what = rng.choice(["cut before", "cut after", "freeze", "slow", "reset", "kill"])
            if what == "kill":
                with self._server.client() as client:
                    client.client_kill_filter(_type=rng.choice(["pubsub", "normal"]), skipme=True)
                continue
            proxy = rng.choice(self._proxies)
            proxy.inject(what, matching=rng.choice([b"", b"EVAL"]), seconds=0.03)
            await asyncio.sleep(rng.uniform(0, 0.3))
            proxy.inject("pass")

    async def _disturb_client(self, client: LossyDashboard | InterruptedStream, rng: random.Random) -> None:
        while not self._is_over:
            await asyncio.sleep(rng.uniform(0, 0.4))
            client.check()
            if isinstance(client, LossyDashboard) and rng.random() < 0.8:
                client.loss_rate = rng.choice([0, 0.2])
                client.pause(rng.choice([0, 0.1, 0.3]))
            else:
                await client.leave()
                await asyncio.sleep(rng.choice([0, 0.1]))
                await client.join(rng.choice(self._nodes).url)

    async def _check(
        self, store: RedisStore, dashboards: list[LossyDashboard], streams: list[InterruptedStream]
    ) -> None:
        for node in self._nodes:
            await eventually(lambda node=node: node.app.state.store.status().stale_seconds is None)
        await self._lose_the_last_messages(dashboards, streams)
        stored: dict[str, int] = {}

        async def read_the_stored_counts() -> bool:
            with contextlib.suppress(StoreUnavailable):  # a busy machine may need a second try
                stored.update(await store.counts(CALENDAR.slot(self._clock()).day))
            return bool(stored)

        await eventually(read_the_stored_counts)
        stored.pop(ALL_EVENTS)

        def all_show_the_stored_counts() -> bool:
            for client in (*dashboards, *streams):
                client.check()
            return not self._differences(stored, dashboards, streams)

        try:
            await eventually(all_show_the_stored_counts)
        except AssertionError:
            raise AssertionError(self._differences(stored, dashboards, streams)) from None
        for client in (*dashboards, *streams):
            lowered = {event: self._changes[event] + len(self._data_losses) for event in EVENTS}
            assert client.decreases <= Counter(lowered), client.decreases
        for api in self._clients:
            assert (await api.get("/events")).json() == stored

    async def _lose_the_last_messages(self, dashboards: list[LossyDashboard], streams: list[InterruptedStream]) -> None:
        """Make every dashboard lose a message, which it notices at the next one, and every stream resume after them."""
        lost = [dashboard.lost for dashboard in dashboards]
        for stream in streams:
            await stream.leave()
        for loss_rate in (1, 0):
            for dashboard in dashboards:
                dashboard.loss_rate = loss_rate
            for client in self._clients:
                assert (await client.post(f"/event/{STREAMED[0]}")).json()["ack"] == "redis"
            await eventually(lambda: all(dash.lost > n for dash, n in zip(dashboards, lost, strict=True)))
        for stream in streams:
            await stream.join(stream.url)

    def _differences(
        self, stored: dict[str, int], dashboards: list[LossyDashboard], streams: list[InterruptedStream]
    ) -> list[Any]:
        """Return the stored counts and those of the clients that show others. A stream has only what has changed."""
        shown = [{event: n for event, n in dashboard.counts.items() if n} for dashboard in dashboards]
        wrong = [counts for counts in shown if counts != stored]
        wrong += [s.counts for s in streams if any(n != stored.get(event, 0) for event, n in s.counts.items())]
        if {event: streams[1].counts.get(event) for event in STREAMED} != {e: stored.get(e, 0) for e in STREAMED}:
            wrong.append(streams[1].counts)
        return [stored, *wrong] if wrong else []


@pytest.mark.fails_on_mutant(
    "a resync sends nothing",
    "app/live/clients.py",
    '        """Send a snapshot again."""\n        self.cursor = NO_CURSOR\n',
    '        """Send a snapshot again."""\n',
)
@pytest.mark.fails_on_mutant(
    "corrected counts are not shown",
    "app/live/peers.py",
    "        if (epoch, generation) == (self._epoch, live_day.generation):",
    "        if True:",
)
@pytest.mark.fails_on_mutant(
    "a stream that resumes misses changes",
    "app/live/clients.py",
    "self.cursor = day.parse_cursor(self._last_event_id)",
    "self.cursor = day.head",
)
@pytest.mark.usefixtures("small_limits")
async def test_live_clients(
    redis_server: RedisServer, tmp_path: Path, slow_clients: random.Random, data_losses: list[int]
) -> None:
    async def episode(rng: random.Random) -> None:
        redis_server.flush()
        slow_clients.seed(rng.random())
        data_losses.clear()
        await Episode(redis_server, tmp_path, rng, data_losses).run()

    await run_episodes(1, episode)
