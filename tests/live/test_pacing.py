"""The CPU budget of broadcasting: how much of a busy and of an idle core it uses."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from app.live import broadcaster
from tests.live.clients import dashboard
from tests.support.servers import RunningApp, eventually


async def test_broadcasting_uses_no_more_than_its_share_and_the_last_count_arrives(
    tally: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds are made to cost as much as with hundreds of clients; their cost is measured on the thread's own clock."""
    live = tally.app.state.broadcaster
    spent, rounds, broadcast_once, done = 0.0, 0, live._broadcast_once, asyncio.Event()

    async def costly_round() -> tuple[float, bool]:
        nonlocal spent, rounds
        began = time.thread_time()
        _, is_blocked = await broadcast_once()
        while time.thread_time() - began < 0.015:
            pass
        spent, rounds = spent + time.thread_time() - began, rounds + 1
        done.set()
        return time.thread_time() - began, is_blocked

    async with dashboard(tally) as page, tally.client() as client:
        began, hits = time.monotonic(), 0
        with monkeypatch.context() as patch:
            patch.setattr(live, "_broadcast_once", costly_round)
            while rounds < 25:
                done.clear()
                await client.post("/event/a")
                hits += 1
                await done.wait()
        share = spent / (time.monotonic() - began)
        await eventually(lambda: page.counts == {"a": hits})
    assert share < 0.4


NO_BUDGET = pytest.mark.fails_on_mutant("no budget", "app/live/broadcaster.py", "CPU_SHARE = 0.16", "CPU_SHARE = 0.9")
BUSY_CORE = pytest.mark.fails_on_mutant(
    "as much of a busy core", "app/live/broadcaster.py", "1 - used / max(passed, 1e-6)", "1.0"
)
IDLE_CORE = pytest.mark.fails_on_mutant(
    "no more of an idle core", "app/live/broadcaster.py", "CPU_SHARE * (1 + max(", "CPU_SHARE * (1 + 0 * max("
)


@pytest.mark.parametrize(
    ("busy", "share"),
    [
        pytest.param(0.0, 0.32, marks=IDLE_CORE),
        pytest.param(0.5, 0.24, marks=IDLE_CORE),
        pytest.param(1.0, 0.16, marks=[BUSY_CORE, NO_BUDGET]),
    ],
)
async def test_broadcasting_uses_less_of_a_core_that_has_other_work(
    tally: RunningApp, monkeypatch: pytest.MonkeyPatch, busy: float, share: float
) -> None:
    """On simulated clocks, because other work of the machine would take part of the core."""
    live = tally.app.state.broadcaster
    live._sender.cancel()
    began = now = live._round_began_at
    spent, sleep, done = 0.0, asyncio.sleep, asyncio.Event()

    async def costly_round() -> tuple[float, bool]:
        nonlocal now, spent
        now, spent = now + 0.015, spent + 0.015
        live.wake("")
        if now > began + 30:
            done.set()
            await sleep(3600)  # until it is cancelled
        return 0.015, False

    async def simulated_sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await sleep(0)

    monkeypatch.setattr(live, "_broadcast_once", costly_round)
    monkeypatch.setattr(broadcaster, "IDLE_SECONDS", 0)  # no client is connected
    clocks = SimpleNamespace(monotonic=lambda: now, process_time=lambda: now * busy, thread_time=time.thread_time)
    monkeypatch.setattr(broadcaster, "time", clocks)
    monkeypatch.setattr(broadcaster, "asyncio", SimpleNamespace(**(vars(asyncio) | {"sleep": simulated_sleep})))
    sender = asyncio.create_task(live._broadcast_loop())
    await done.wait()
    assert spent / (now - began) == pytest.approx(share, rel=0.05)
    sender.cancel()
