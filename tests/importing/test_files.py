"""Files of other counters: their sums arrive in totals and days, once, and a file with a bad line not at all."""

import io
import time
from collections import Counter
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL
from app.domain.calendar import Calendar, Clock
from app.domain.counting import COUNT_MAX
from app.export_import import ExportError, check_file, import_line, lines_left, read_lines
from app.importing.files import BAD_LINES_MAX, open_source
from app.main import create_app
from app.stores.base import CounterStore, StoreLimits
from app.stores.memory import MemoryStore
from tests.importing.commands import run_import, start_import
from tests.support.redis_servers import RedisServer, wait_until
from tests.support.servers import AS_ADMIN, SettableClock, settings_for

SAMPLE = Path(__file__).parent / "data/goatcounter-export.csv"  # rows of GoatCounter 2.7, one of them of a bot
HEADER = "event,count,date\n"
CLOCK = Clock(Calendar(ZoneInfo("Europe/Berlin")), lambda: 1_795_435_200.0)  # noon of 2026-11-23


async def import_text(store: CounterStore, text: str | bytes, *, with_bots: bool = False) -> int:
    """Import a file, and return how many lines of its export were added."""
    data = text.encode() if isinstance(text, str) else text
    source = open_source(io.BytesIO(data), CLOCK, with_bots=with_bots)
    with source.file:
        left = await lines_left(store, check_file(source.file, CLOCK))
        for line in read_lines(source.file, CLOCK):
            await import_line(store, CLOCK, line)
    return left


async def stored(store: CounterStore) -> dict[str, dict[str, int]]:
    """Return the counts of the totals and of each day by its date."""
    names = {b: "total" if b == TOTAL else CLOCK.calendar.slot(b.start).date for b in await store.list_buckets()}
    found = zip(names.values(), await store.read(list(names)), strict=True)
    return {name: {e: n for e, n in counts.items() if e != ALL_EVENTS} for name, counts in found}


@pytest.mark.fails_on_mutant("bots count", "app/importing/files.py", "if hits.is_bot and not with_bots:", "if False:")
@pytest.mark.fails_on_mutant("days are those of UTC", "app/importing/rows.py", "at.astimezone(zone)", "at")
@pytest.mark.fails_on_mutant(
    "the same file is another import", "app/importing/files.py", "digest.hexdigest()", 'digest.hexdigest()[:0] or ""'
)
async def test_an_export_of_goatcounter_is_imported_once_without_bots() -> None:
    store = MemoryStore(StoreLimits(100))
    assert [await import_text(store, SAMPLE.read_bytes()) for _ in range(2)] == [5, 0]
    first = {":": 3, ":pricing": 1, ':a,b "c"': 1, ":über-uns": 1, ":blog:first-post": 1, "signup click": 2}
    days = {
        "2026-11-01": first,
        "2026-11-05": {":": 1},  # at 00:41 in Berlin
        "2026-11-06": {":über-uns": 1},
        "2026-11-07": {":": 1},
    }
    assert await stored(store) == {"total": dict(sum(map(Counter, days.values()), Counter())), **days}
    with_bots = MemoryStore(StoreLimits(100))
    await import_text(with_bots, SAMPLE.read_bytes(), with_bots=True)
    assert (await with_bots.read([TOTAL]))[0][":pricing"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "event,count,date\na,1,2026-11-01\na,2,\nns:b c,4,2026-11-01\n",
        '\ufeff"Event Name";"Hits";"Day"\r\n"a";1;2026-11-01T00:00+01:00\r\na;2;""\r\nns/b  c;4;2026-11-01 23:59\r\n',
        "count\tother\tkey\tdate\n1\t\ta\t2026-10-31T23:00:00Z\n\n2\tx\ta\t\n4\t\tns:b c\t2026-11-01\n0\t\tzero\t\n",
        "namespace,key,value,timestamp\nns,b c,4,2026-11-01\n,a,3,\n"
    ],
)  # fmt: skip
async def test_a_csv_is_imported_by_the_names_of_its_columns(text: str) -> None:
    store = MemoryStore(StoreLimits(100))
    await import_text(store, text)
    if "namespace" in text:
        assert await stored(store) == {"total": {"ns:b c": 4, ":a": 3}, "2026-11-01": {"ns:b c": 4}}
    else:
        assert await stored(store) == {"total": {"a": 3, "ns:b c": 4}, "2026-11-01": {"a": 1, "ns:b c": 4}}


async def test_a_list_of_countapi_keys_is_imported() -> None:
    lines = 'mysite.com/visits 1234\nmysite.com/visits: 1\n\nns:key=5\n50 % off\t7\r\n"a ""b""" 2\n'
    store = MemoryStore(StoreLimits(100))
    assert [await import_text(store, lines) for _ in range(2)] == [1, 0]
    assert await stored(store) == {"total": {"mysite.com:visits": 1235, "ns:key": 5, "50 % off": 7, 'a "b"': 2}}


async def test_an_imported_file_adds_to_counts_and_a_part_of_it_is_completed() -> None:
    store = MemoryStore(StoreLimits(100))
    text = HEADER + "".join(f"e{i},1,2026-11-{i % 20 + 1:02}\n" for i in range(3000))
    source = open_source(io.BytesIO(text.encode()), CLOCK)
    with source.file:
        for line in list(read_lines(source.file, CLOCK))[:7]:
            await import_line(store, CLOCK, line)
    assert await import_text(store, text) == 23 - 7
    await import_text(store, HEADER + "e0,5,2026-11-01\n")
    found = await stored(store)
    assert (sum(found["total"].values()), len(found["2026-11-02"])) == (3005, 150)
    assert (found["total"]["e0"], found["2026-11-01"]["e0"]) == (6, 6)


BAD_FILES = {
    "": "line 1: unknown format",
    "\n": "line 1: unknown format",
    "<html>\n": "line 1: unknown format",
    "c,8\n": "line 1: unknown format",
    "visits 1,234\n": "line 1: unknown format",
    "3Path,Bot,Date\n/,0,2026-11-01T00:00:00Z\n": "line 1: unknown format",
    "event,count,total\na,1,1\n": "line 1: the columns count and total have the same meaning",
    HEADER: "the file has no counts",
    HEADER + "a,0,\n": "the file has no counts",
    SAMPLE.read_text().splitlines()[0] + "\n": "GoatCounter exports them only if it stores individual pageviews",
    HEADER + "a,1\n": "line 2: the row has 2 columns, and the header 3",
    HEADER + '"a\nb",1,\n\n"c",x,\n': "line 5: the count must be",
    HEADER + 'a,1,\n"b"x,1,\n': "line 3: ",
    HEADER + 'a,1,\n"b,1,\n': "line 3: ",
    HEADER + "a,-1,\n": "line 2: the count must be",
    HEADER + "a,1.5,\n": "line 2: the count must be",
    HEADER + "a,٣,\n": "line 2: the count must be",
    HEADER + f"a,{COUNT_MAX + 1},\n": "line 2: the count must be",
    HEADER + f"a,{'9' * 5000},\n": "line 2: the count must be",
    HEADER + f"a,{COUNT_MAX},\nb,1,\n": "line 3: the sum of all counts exceeds",
    HEADER + ",1,\n": "line 2: the event name must have 1 to 128 characters",
    HEADER + f"{'a' * 129},1,\n": "line 2: the event name must have 1 to 128 characters",
    HEADER + "a\u202eb,1,\n": "line 2: the event name must not contain",
    HEADER + "a\0,1,\n": "line 2: ",
    HEADER + "a,1,01/02/2026\n": "line 2: the date must be like",
    HEADER + "a,1,2026-02-30\n": "line 2: the date must be like",
    HEADER + "a,1,0001-01-01T00:00:00+14:00\n": "line 2: the date must be like",
    HEADER + "a,1,2026-11-24\n": "line 2: the date must be from 1970-01-02 to today, 2026-11-23",
    HEADER + "a,1,1970-01-01\n": "line 2: the date must be from 1970-01-02",
    HEADER + f"{'a' * 200_000},1,\n": "line 2: field larger than",
    "a 1\nb\n": "line 2: expected a name and a count",
    "a 1\n" + " " * 3_000_000 + "x\n": "line 2: expected a name and a count",
    "a 1\n" + "1" * 3_000_000 + "\n": "line 2: expected a name and a count",
    "a 1\n" + "x" * 5_000_000 + "\n": "line 2: a line must be shorter",
}


@pytest.mark.parametrize("text", BAD_FILES, ids=range(len(BAD_FILES)))
async def test_a_bad_line_is_named_by_its_number_and_nothing_is_imported(text: str) -> None:
    store = MemoryStore(StoreLimits(100))
    with pytest.raises(ExportError) as error:
        await import_text(store, text)
    assert BAD_FILES[text] in str(error.value)
    assert len(str(error.value)) < 300
    assert await store.list_buckets() == []


@pytest.mark.parametrize(
    ("data", "message"),
    [(HEADER.encode("utf-16"), "line 1: the file is not UTF-8"), (HEADER.encode() + b"\xff,1,\n", "line 2: not UTF-8")],
)
async def test_a_file_that_is_not_utf_8_is_rejected(data: bytes, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        await import_text(MemoryStore(StoreLimits(100)), data)


async def test_all_bad_lines_are_named_up_to_a_limit() -> None:
    with pytest.raises(ExportError, match=r"^line 2: [^;]*; line 4: [^;]*$"):
        await import_text(MemoryStore(StoreLimits(100)), HEADER + "a,x,\na,1,\nb,1,x\n")
    with pytest.raises(ExportError) as error:
        await import_text(MemoryStore(StoreLimits(100)), HEADER + "a,x,\n" * 1000)
    assert str(error.value).count("line ") == BAD_LINES_MAX


@pytest.mark.fails_on_mutant(
    "an import that does not fit is begun",
    "app/export_import.py",
    "totals.get(ALL_EVENTS, 0) + contents.hits > COUNT_MAX",
    "False",
)
async def test_an_import_that_does_not_fit_is_not_begun() -> None:
    store = MemoryStore(StoreLimits(100))
    await import_text(store, f"a {COUNT_MAX - 2000}\n")
    with pytest.raises(ExportError, match="the sum of all events would exceed"):
        await import_text(store, HEADER + "".join(f"e{i},1,\n" for i in range(2001)))
    assert await store.sizes([TOTAL]) == [1]


async def test_post_import_detects_the_format(tmp_path: Path, redis_server: RedisServer, clock: SettableClock) -> None:
    app = create_app(settings_for("sqlite", tmp_path, redis_server), clock)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tally", headers=AS_ADMIN) as client,
    ):
        sample = SAMPLE.read_bytes()
        expected = {"format": "goatcounter", "lines": 4, "events": 6, "hits": 12, "bots": 1}
        for query, added in (("?dryRun=true", False), ("", True), ("", False)):
            response = await client.post(f"/import{query}", content=sample)
            assert response.json() == expected | {"added": added}
        assert (await client.get("/event/:blog:first-post")).json()["total"] == 1
        refused = await client.post("/import", content=b"event,count\na,1\nb,x\n")
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")
        assert "line 3: the count" in refused.json()["detail"]
        assert (await client.get("/event/a")).json()["total"] == 0
        with_bots = await client.post("/import?bots=true&dryRun=true", content=sample)
        assert with_bots.json() == expected | {"hits": 13, "bots": 0, "added": False}


async def test_a_killed_import_of_a_csv_is_completed_by_the_next(tmp_path: Path, redis_server: RedisServer) -> None:
    file = tmp_path / "history.csv"
    rows = [f"e{event},{event + 1},2025-{month:02}-{day:02}\n" for event in range(100) for month in range(1, 13)
            for day in range(1, 29)]  # fmt: skip
    file.write_text(HEADER + "".join(rows))
    summary = "Format: csv. It has 1696800 hits of 100 events on 336 days from 2025-01-01 to 2025-12-28."
    assert run_import("--dry-run", str(file), store=redis_server.url)[0] == summary
    with redis_server.client() as client:
        assert client.keys("tally:{0}:total*") == []
        half = start_import(str(file), store=redis_server.url)
        wait_until(lambda: half.poll() is not None or bool(client.keys("tally:{0}:source:import*")))
        time.sleep(0.05)  # long enough for some lines; it may have ended, too
        half.kill()
        half.communicate()
        outputs = [run_import(str(file), store=redis_server.url) for _ in range(2)]
        assert [output[0] for output in outputs] == [summary] * 2
        assert outputs[1][1] == "Nothing to add: it was imported before."
        days = [client.hgetall(key) for key in client.scan_iter("tally:{0}:day:*")]
        assert len(days) == 336
        assert all(counts[""] == "5050" for counts in days)
        assert client.hget("tally:{0}:total:0", "e99") == str(100 * 336)
