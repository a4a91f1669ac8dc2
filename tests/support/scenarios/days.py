"""A flood of names, a clock that jumps, and midnights."""

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
from tests.support.scenarios import NEVER, Figures, compared, exact, memory_kb, nodes, redis, store
from tests.support.servers import ChosenClock, Process, eventually, serving
from tests.support.watchers import watching


async def names_flood(directory: Path, kind: str, names: int, cap: int) -> Figures:
    """Random names flood a store that takes so many, from one node on SQLite or from three on Redis, 100 in a request.

    There are exactly as many names as the cap says in the end, further ones are refused with a 429, and the counts of
    names that were known before are exact all the time.
    """
    number = 3 if kind == "redis" else 1
    known = [f"known {i}" for i in range(10)]
    with store(directory, kind) as url, nodes(directory, url, number, TALLY_EVENTS_MAX=str(cap)) as apps:
        await asyncio.to_thread(apps[0].post, "/events", json.dumps(dict.fromkeys(known, 1)).encode())
        resident = memory_kb(apps[0], "VmRSS")
        least, refused = Counter[str](known), 0
        todo = iter(range(names // 100))

        async def count(connection: Connection, counts: dict[str, int]) -> bool:
            nonlocal refused
            answer = await connection.ask("POST", "/events", json.dumps(counts).encode())
            assert answer.status in {200, 429}, answer
            if answer.status == 200:
                least.update(counts)
            refused += answer.status == 429
            return answer.status == 200

        async def flood(app: Process) -> None:
            connection, alone = Connection(app.url), True
            for _ in todo:
                fresh = [uuid.uuid4().hex for _ in range(100)]
                if not await count(connection, dict.fromkeys(fresh, 1)) and alone:
                    alone = all([await count(connection, {name: 1}) for name in fresh])  # as many as there is room for
                assert await count(connection, {random.choice(known): 1})
            connection.close()

        await asyncio.gather(*(flood(app) for _ in range(4) for app in apps))
        values = apps[0].get("/events")
        growth = (memory_kb(apps[0], "VmRSS") - resident) / 1000
    figures = exact(compared(least, least, values))
    figures.also |= {"names tried": names, "names kept": len(values), "cap": cap, "refused requests": refused}
    figures.also["memory of a node, MB"] = round(growth, 1)
    figures.promise(len(values) == cap, f"there are {len(values)} names, and the cap is {cap}")
    return figures


LIMITS = {"write_limit": "1000000/second", "read_limit": "1000000/second"}
SHIFTS = [50 * 60, 60 * 60, -2 * 3600, 140 * 60, -3600, 70 * 60, 3 * 86_400 + 700 * 60, -3 * 86_400]


async def clock_jumps(directory: Path, kind: str, jumps: int) -> Figures:
    """The clock of a node jumps an hour on, two back, over midnight, back over it, three days on, and so on.

    No day goes back, each hit is in the day that its answer says, and the days together are all hits.
    """
    clock = ChosenClock()
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
                days.update(answer.json()["day"] for answer in answers)
                assert (await http.get("/event/a")).json()["day"] == last
            clock.shift += 5 * 86_400
            counted = {day["day"]: day["hits"] for day in (await http.get("/history")).json()}
            total = (await http.get("/event/a")).json()["total"]
            hours = (await http.get("/event/a/series?step=hour&points=1440")).json()["points"]
    figures = exact(compared(days, days, counted))
    figures.also |= {"jumps": jumps, "days": len(days)}
    figures.promise(days == expected, "no day goes back, and each hit is in the day that the clock says")
    figures.promise(total == jumps * 5, f"the total of all days is {total}")
    figures.promise(len(days) > 60 or sum(point["count"] for point in hours) == total, "the hours are all hits, too")
    return figures


async def midnights(directory: Path, nights: int) -> Figures:
    """Midnight passes under load on three nodes whose clocks are a second apart, night after night, with pages open.

    Each day is closed once and has what was acknowledged of it, every page is told once that a new one begins, and no
    page shows a number of the one day on the other.
    """
    clocks, days = [ChosenClock() for _ in range(3)], defaultdict[str, Counter[str]](Counter)
    events = [f"e{i}" for i in range(5)]

    async def post(http: httpx.AsyncClient, event: str, by: int = 1) -> str:
        answer = (await http.post(f"/event/{event}", json={"by": by})).json()
        days[answer["day"]][event] += by
        return answer["day"]

    async def write_over_midnight(http: httpx.AsyncClient, day: str) -> None:
        of_new_day = 0
        for event in itertools.cycle(events):
            of_new_day += await post(http, event) > day
            if of_new_day == 30:
                return

    with redis(directory, *NEVER) as server:
        chosen = Settings(TALLY_STORE=server.url, spool=str(directory / "spool"), **LIMITS)
        async with contextlib.AsyncExitStack() as stack:
            night = datetime(2026, 5, 1, 12, tzinfo=UTC)
            for ahead, clock in enumerate(clocks):
                clock.shift = night.timestamp() - time.time() + ahead
            served = [await stack.enter_async_context(serving(chosen, clock)) for clock in clocks]
            https = [await stack.enter_async_context(one.client()) for one in served]
            pages = await stack.enter_async_context(watching(*(one.url for one in served), live=4, plain=4))
            for number in range(nights):
                day = (night + timedelta(days=number)).date().isoformat()
                for event in events:  # so that every count of the old day is larger than any of the new one
                    await post(https[0], event, by=1_000_000 - number)
                await eventually(lambda day=day: all(page.counts == days[day] for page in pages))
                for ahead, clock in enumerate(clocks):
                    clock.go_to(f"{day}T23:59:57.500+00:00")
                    clock.shift += ahead
                await asyncio.gather(*(write_over_midnight(http, day) for http in https for _ in range(2)))
                new = days[max(days)]
                await eventually(lambda new=new: all(page.counts == new for page in pages))
            told = [page for page in pages if page.resets != sorted(days)[1:]]
            wrong = [what for page in pages for what in page.wrong]
            counted: Counter[str] = Counter()
            for day in days:
                path = f"/history/{day}" if day < max(days) else "/events"
                first, *others = [(await http.get(path)).json() for http in https]
                assert others == [first] * 2, day
                counts = first["parts"][0]["counts"] if day < max(days) else first
                counted.update({f"{day} {event}": count for event, count in counts.items()})
            closed = [line["day"] for line in (await https[0].get("/history")).json()]
    least = Counter({f"{day} {event}": count for day, counts in days.items() for event, count in counts.items()})
    figures = exact(compared(least, least, counted))
    figures.also |= {"midnights": nights, "pages": len(pages)}
    figures.promise(closed == sorted(days)[-2::-1], f"each day is closed once: {closed}")
    figures.promise(not told, f"each page is told of each day once: {[page.resets for page in told[:2]]}")
    figures.promise(not wrong, f"no page shows a number of another day: {wrong[:2]}")
    return figures
