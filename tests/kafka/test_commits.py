"""Records as a commit: times, days and the size of a commit."""

import asyncio
import json
import threading
from datetime import UTC, datetime
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import Calendar
from app.domain.counting import VISITOR_WEIGHT
from app.kafka.commits import BYTES_PER_TURN, build_commit
from app.kafka.decoding import DecodedRecord, FieldMapping, decode_buffered, mapped_decoder
from app.pending_commit import COMMIT_WEIGHT_MAX

UTC_CALENDAR = Calendar(ZoneInfo("UTC"))
NOW = 1_795_521_600.0
DAY = 86_400
decode_foreign = mapped_decoder(FieldMapping("e"))


def record(at: float, value: object) -> SimpleNamespace:
    return SimpleNamespace(value=json.dumps(value).encode(), key=None, timestamp=int(at * 1000))


@pytest.mark.fails_on_mutant(
    "acknowledged hits are rejected because of a clock",
    "app/kafka/commits.py",
    "            if not acknowledged:",
    "            if True:",
)
@pytest.mark.parametrize("ahead", [3600, 1e10, -400 * DAY, -NOW - 1], ids=["hour", "centuries", "year ago", "1969"])
async def test_an_acknowledged_hit_is_counted_whatever_its_time(ahead: float) -> None:
    records = [record(NOW + ahead, {"counts": {"a": 1}})]
    commit, dead, taken, _ = await build_commit(decode_buffered, True, records, NOW, UTC_CALENDAR, 8)
    assert (dead, taken, [dict(group.amounts) for group in commit]) == ([], 1, [{"a": 1}])
    assert commit[0].slot == UTC_CALENDAR.slot(max(0, min(NOW, NOW + ahead)))


@pytest.mark.parametrize(("ahead", "reasons"), [(299, []), (301, ["future"]), (-40 * DAY, ["old"])])
async def test_a_foreign_record_is_rejected_because_of_its_time(ahead: float, reasons: list[str]) -> None:
    records = [record(NOW + ahead, {"e": "a"})]
    _, dead, _, _ = await build_commit(decode_foreign, False, records, NOW, UTC_CALENDAR, 8)
    assert [letter.reason.partition(":")[0] for letter in dead] == reasons


@pytest.mark.fails_on_mutant(
    "every day has 24 hours",
    "app/kafka/commits.py",
    "return day_start(calendar.zone, calendar.local(now).date() - timedelta(days=days_kept - 1))",
    "return calendar.slot(now).day - (days_kept - 1) * 86_400",
)
@pytest.mark.parametrize("month", [3, 10])
async def test_the_oldest_day_begins_at_its_own_midnight_after_a_change_of_the_clocks(month: int) -> None:
    berlin = Calendar(ZoneInfo("Europe/Berlin"))
    now = datetime(2026, month, 31, 12, tzinfo=UTC).timestamp()
    begin = berlin.starts("day", now, 8)[0]
    records = [record(begin - 1, {"e": "a"}), record(begin, {"e": "b"})]
    commit, dead, _, _ = await build_commit(decode_foreign, False, records, now, berlin, 8)
    assert [letter.record for letter in dead] == records[:1]
    assert [group.slot for group in commit] == [berlin.slot(begin)]


@pytest.mark.fails_on_mutant(
    "visits have no weight",
    "app/kafka/commits.py",
    "            self.size += VISITOR_WEIGHT *",
    "            self.size += 0 *",
)
async def test_a_commit_has_fewer_records_if_they_write_users_and_sessions() -> None:
    visits = [["a", 1, f"user {number}", "s"] for number in range(100)]
    records = [record(NOW, {"counts": {"a": 100}, "visits": visits})] * 100
    _, _, taken, _ = await build_commit(decode_buffered, True, records, NOW, UTC_CALENDAR, 8)
    assert taken == COMMIT_WEIGHT_MAX // (200 * VISITOR_WEIGHT + 1)
    plain = [record(NOW, {"counts": {f"event {number}": 1}}) for number in range(100)]
    assert (await build_commit(decode_buffered, True, plain, NOW, UTC_CALENDAR, 8)).taken == 100


@pytest.mark.fails_on_mutant(
    "a large record is decoded in one turn of the event loop",
    "app/kafka/commits.py",
    "await asyncio.to_thread(decode, record) if size > BYTES_PER_TURN else",
    "",
)
@pytest.mark.fails_on_mutant(
    "many records are decoded in one turn of the event loop",
    "app/kafka/commits.py",
    "            await asyncio.sleep(0)\n",
    "",
)
async def test_other_tasks_run_while_records_are_decoded() -> None:
    turns = 0
    in_main_thread: list[bool] = []

    async def other_task() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def decode(encoded: SimpleNamespace) -> DecodedRecord:
        in_main_thread.append(threading.current_thread() is threading.main_thread())
        return decode_buffered(encoded)

    small = record(NOW, {"counts": {"a" * 100: 1}})
    task = asyncio.create_task(other_task())
    await build_commit(decode, True, [small] * 1000, NOW, UTC_CALENDAR, 8)
    assert all(in_main_thread)
    assert turns >= 1000 * len(small.value) // BYTES_PER_TURN >= 1
    large = record(NOW, {"counts": {"a": 5000}, "visits": [["a", 1, f"user {i}", "s"] for i in range(5000)]})
    assert (await build_commit(decode, True, [large], NOW, UTC_CALENDAR, 8)).parts
    assert not in_main_thread[-1]
    task.cancel()
