"""Scenarios with many event names, with clocks that jump, and at midnight."""

import asyncio
import contextlib
import itertools
import json
import random
import time
import uuid
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from app.main import create_app
from app.settings import Settings
from tests.support.load import Connection
from tests.support.scenarios import (
    NEVER,
    Figures,
    compare_counts,
    memory_kb,
    nodes,
    redis,
    require_consistent,
    require_exact,
    store,
)
from tests.support.servers import Process, SettableClock, eventually, serving
from tests.support.watchers import watching


async def event_name_flood(directory: Path, kind: str, names: int, limit: int) -> Figures:
    """Clients count random event names, 100 per request, on one node with SQLite or on three with Redis.

    Names up to the limit (TALLY_EVENTS_MAX) are counted, further ones are rejected with a 429, and the counts of
    existing names stay exact.
    """
    number = 3 if kind == "redis" else 1
    known = [f"known {i}" for i in range(10)]
    with store(directory, kind) as url, nodes(directory, url, number, TALLY_EVENTS_MAX=str(limit)) as apps:
        await asyncio.to_thread(apps[0].post, "/events", json.dumps(dict.fromkeys(known, 1)).encode())
        resident = memory_kb(apps[0], "VmRSS")
        expected, rejected = Counter[str](known), 0
        todo = iter(range(names // 100))

        async def count(connection: Connection, counts: dict[str, int]) -> bool:
            nonlocal rejected
            response = await connection.request("POST", "/events", json.dumps(counts).encode())
            assert response.status in {200, 429}, response
            if response.status == 200:
                expected.update(counts)
            rejected += response.status == 429
            return response.status == 200

        async def flood(app: Process) -> None:
            connection, has_room = Connection(app.url), True
            for _ in todo:
                fresh = [uuid.uuid4().hex for _ in range(100)]
                if not await count(connection, dict.fromkeys(fresh, 1)) and has_room:
                    # A batch is all or nothing, so fill the remaining room with single names.
                    has_room = all([await count(connection, {name: 1}) for name in fresh])
                assert await count(connection, {random.choice(known): 1})
            connection.close()

        await asyncio.gather(*(flood(app) for _ in range(4) for app in apps))
        values = apps[0].get("/events")
        growth = (memory_kb(apps[0], "VmRSS") - resident) / 1000
    figures = require_exact(compare_counts(expected, expected, values))
    figures.details |= {"names tried": names, "names counted": len(values), "limit": limit}
    figures.details["rejected requests"] = rejected
    figures.details["memory of a node, MB"] = round(growth, 1)
    figures.require(len(values) == limit, f"there are {len(values)} names with a limit of {limit}")
    return figures


LIMITS = {"write_limit": "1000000/second", "read_limit": "1000000/second"}
SHIFTS = [50 * 60, 60 * 60, -2 * 3600, 140 * 60, -3600, 70 * 60, 3 * 86_400 + 700 * 60, -3 * 86_400]


async def clock_jumps(directory: Path, kind: str, jumps: int) -> Figures:
    """The clock of a node jumps forwards and backwards by hours and days, over midnight in both directions.

    The current day never moves backwards, every hit is in the day that its response names, and the days add up to all
    hits.
    """
    clock = SettableClock()
    clock.go_to("2026-05-01T22:00:00+00:00")
    with store(directory, kind) as url:
        settings = Settings(TALLY_STORE=url, spool=str(directory / "spool"), **LIMITS)
        app = create_app(settings, clock)
        days, expected, last = Counter[str](), Counter[str](), ""
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            for shift in itertools.islice(itertools.cycle(SHIFTS), jumps):
                clock.shift += shift
                last = max(last, datetime.fromtimestamp(clock(), UTC).date().isoformat())
                expected[last] += 5
                answers = await asyncio.gather(*(http.post("/event/a") for _ in range(5)))
                days.update(response.json()["day"] for response in answers)
                assert (await http.get("/event/a")).json()["day"] == last
            clock.shift += 5 * 86_400
            counted = {day["day"]: day["hits"] for day in (await http.get("/history")).json()}
            total = (await http.get("/event/a")).json()["total"]
            hours = (await http.get("/event/a/series?step=hour&points=1440")).json()["points"]
        figures = require_exact(compare_counts(days, days, counted))
        await require_consistent(figures, directory, url, clock())
    figures.details |= {"jumps": jumps, "days": len(days)}
    figures.require(days == expected, "hits are in another day than that of the clock, or a day went backwards")
    figures.require(total == jumps * 5, f"the total of all days is {total}")
    hits_in_hours = sum(point["count"] for point in hours)
    figures.require(len(days) > 60 or hits_in_hours == total, "the hours do not add up to all hits")
    return figures


async def midnights(directory: Path, nights: int) -> Figures:
    """Midnight passes many times under load, on three nodes whose clocks differ by a second, with open dashboards.

    Each day is closed once with all its acknowledged hits, each client gets one `reset` per day, and no client shows a
    count of one day on another.
    """
    clocks, days = [SettableClock() for _ in range(3)], defaultdict[str, Counter[str]](Counter)
    events = [f"e{i}" for i in range(5)]

    async def post(http: httpx.AsyncClient, event: str, by: int = 1) -> str:
        response = (await http.post(f"/event/{event}", json={"by": by})).json()
        days[response["day"]][event] += by
        return response["day"]

    async def write_over_midnight(http: httpx.AsyncClient, day: str) -> None:
        hits_of_new_day = 0
        for event in itertools.cycle(events):
            hits_of_new_day += await post(http, event) > day
            if hits_of_new_day == 30:
                return

    with redis(directory, *NEVER) as server:
        settings = Settings(TALLY_STORE=server.url, spool=str(directory / "spool"), **LIMITS)
        async with contextlib.AsyncExitStack() as stack:
            night = datetime(2026, 5, 1, 12, tzinfo=UTC)
            for ahead, clock in enumerate(clocks):
                clock.shift = night.timestamp() - time.time() + ahead
            apps = [await stack.enter_async_context(serving(settings, clock)) for clock in clocks]
            https = [await stack.enter_async_context(app.client()) for app in apps]
            pages = await stack.enter_async_context(watching(*(app.url for app in apps), live=4, plain=4))
            for number in range(nights):
                day = (night + timedelta(days=number)).date().isoformat()
                for event in events:  # a count of the old day is larger than any of the new one
                    await post(https[0], event, by=1_000_000 - number)
                await eventually(lambda day=day: all(page.counts == days[day] for page in pages))
                for ahead, clock in enumerate(clocks):
                    clock.go_to(f"{day}T23:59:57.500+00:00")
                    clock.shift += ahead
                await asyncio.gather(*(write_over_midnight(http, day) for http in https for _ in range(2)))
                new = days[max(days)]
                await eventually(lambda new=new: all(page.counts == new for page in pages))
            wrong_resets = [page for page in pages if page.resets != sorted(days)[1:]]
            wrong = [text for page in pages for text in page.wrong]
            counted: Counter[str] = Counter()
            for day in days:
                path = f"/history/{day}" if day < max(days) else "/events"
                first, *others = [(await http.get(path)).json() for http in https]
                assert others == [first] * 2, day
                counts = first["parts"][0]["counts"] if day < max(days) else first
                counted.update({f"{day} {event}": count for event, count in counts.items()})
            closed = [line["day"] for line in (await https[0].get("/history")).json()]
    expected = Counter({f"{day} {event}": count for day, counts in days.items() for event, count in counts.items()})
    figures = require_exact(compare_counts(expected, expected, counted))
    figures.details |= {"midnights": nights, "clients": len(pages)}
    figures.require(closed == sorted(days)[-2::-1], f"the closed days are {closed}")
    figures.require(not wrong_resets, f"clients got other resets: {[page.resets for page in wrong_resets[:2]]}")
    figures.require(not wrong, f"clients show counts of another day: {wrong[:2]}")
    return figures
