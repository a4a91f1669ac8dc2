"""Users and sessions: visits, ranking, sketches and expiry."""

from pathlib import Path

import pytest

from app.domain.buckets import ALL_EVENTS, TOTAL, Bucket
from app.domain.counting import BucketWrite, DayChange, HitGroup, Visit
from app.stores import hyperloglog, rules, sqlite, sqlite_tables
from app.stores.base import Cardinality, CounterStore, StoreLimits
from app.stores.rules import VISITOR_MINUTES_TTL_SECONDS
from app.stores.sqlite import SqliteStore
from tests.stores.contract.support import CALENDAR, LATER, NOON, StoreMaker, on_every_store, visitors_of, visits_commit


async def test_visitors_are_counted_by_event_and_day_and_over_all_events(store: CounterStore) -> None:
    minute, _, day, _ = NOON.buckets
    tomorrow = Bucket("day", LATER.day)
    await store.apply(
        "s", 0, 1, visits_commit(("a", "ann", "1"), ("a", "ann", "2"), ("a", "a/b", None), ("a", None, "1"))
    )
    await store.apply("s", 1, 2, visits_commit(("b", "Zoë", None), event="b"))
    await store.apply("s", 2, 3, visits_commit(("a", "ann", None), ("a", "eve", "9"), slot=LATER))
    buckets = [visitors_of("user", "a", day), visitors_of("session", "a", day), visitors_of("user", "a", TOTAL)]
    assert await store.read(buckets) == [{"ann": 2, "a/b": 1}, {"1": 2, "2": 1}, {"ann": 3, "a/b": 1, "eve": 1}]
    error = 0.0 if store.kind in {"memory", "sqlite"} else hyperloglog.ERROR
    for buckets, number in (
        ([visitors_of("user", "a", day)], 2),
        ([visitors_of("user", "a", day), visitors_of("user", "a", tomorrow)], 3),
        ([visitors_of("user", ALL_EVENTS, day)], 3),
        ([visitors_of("user", ALL_EVENTS, day), visitors_of("user", ALL_EVENTS, tomorrow)], 4),
        ([visitors_of("session", ALL_EVENTS, minute)], 2),
        ([visitors_of("user", "never", day)], 0),
    ):
        assert await store.count_distinct(buckets) == Cardinality(number, error), buckets
    days = [NOON.day, LATER.day]
    assert await store.visits("user", "ann", days) == [{"a": 2}, {"a": 1}]
    assert await store.visits("user", "Zoë", days) == [{"b": 1}, {}]
    assert await store.visits("session", "1", days) == [{"a": 2}, {}]
    assert await store.visits("session", "ann", days) == [{}, {}]


@on_every_store(
    sqlite=pytest.mark.fails_on_mutant(
        "the limit applies to each commit",
        "app/stores/sqlite_tables.py",
        "self._ranked[bucket] += len(uncounted) - len(unranked)",
        "pass",
    ),
    redis=pytest.mark.fails_on_mutant("no limit", "app/stores/lua/offset.lua", "size < ranked_max or", "true or"),
)
async def test_visitors_after_the_first_ranked_visitors_max_have_no_count(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", 3)
    users = visitors_of("user", "a", Bucket("day", NOON.day))
    for offset, names in enumerate(("ab", "cdea", "edcb")):
        await store.apply("s", offset, offset + 1, visits_commit(*(("a", name, None) for name in names)))
    (ranked,) = await store.read([users])
    assert {user: n for user, n in ranked.items() if n} == {"a": 2, "b": 2, "c": 2}
    assert (await store.count_distinct([users])).number == 5
    # An erased user makes room for one more.
    await store.apply_change("s", 3, 4, DayChange(NOON, [BucketWrite("take", users, {"b": 2})]))
    await store.apply("s", 4, 5, visits_commit(("a", "e", None), ("a", "d", None)))
    assert await store.read([users], ["e"]) == [{"e": 1}]
    (ranked,) = await store.read([users])
    assert {user: n for user, n in ranked.items() if n} == {"a": 2, "c": 2, "e": 1}


async def test_visitors_can_be_added_to_a_merged_sketch(store: CounterStore) -> None:
    users = visitors_of("user", "a", Bucket("day", NOON.day))
    sketch = hyperloglog.sketch(f"user {i}" for i in range(1000))
    sketch_bucket = users._replace(dimension=f"sketch:{users.dimension}")
    for offset in range(2):  # merging it a second time changes nothing
        change = DayChange(NOON, [BucketWrite("merge", sketch_bucket, sketch)])
        await store.apply_change("s", offset, offset + 1, change)
    (merged,) = await store.read([sketch_bucket])
    assert merged == sketch
    assert await store.count_distinct([users]) == Cardinality(hyperloglog.estimate(sketch), hyperloglog.ERROR)
    await store.apply("s", 2, 3, visits_commit(*(("a", f"user {i}", None) for i in range(990, 1010))))
    union = hyperloglog.estimate(hyperloglog.sketch(f"user {i}" for i in range(1010)))
    assert await store.count_distinct([users]) == Cardinality(union, hyperloglog.ERROR)


@on_every_store(["memory", "sqlite"])
async def test_prune_deletes_the_visitors_of_a_minute_after_two_hours(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PRUNED_BUCKETS", 2)
    slots = [CALENDAR.slot(NOON.minute + 60 * i) for i in range(5)]
    for i, slot in enumerate(slots):
        await store.apply("s", i, i + 1, visits_commit(("a", "ann", "1"), slot=slot))
    two_hours_later = CALENDAR.slot(slots[3].minute + VISITOR_MINUTES_TTL_SECONDS)
    await store.prune({"minute": NOON.minute, "hour": NOON.hour, "day": NOON.day}, two_hours_later)
    minutes = {bucket.start for bucket in await store.list_buckets() if bucket.step == "minute" and bucket.dimension}
    assert minutes == {slot.minute for slot in slots[3:]}
    counts = await store.read([Bucket("minute", slot.minute) for slot in slots], ["a"])
    assert counts == [{"a": 1}] * 5


@on_every_store(["redis", "cluster"])
async def test_redis_expires_the_visitors_of_a_minute_after_two_hours(
    store: CounterStore, make_store: StoreMaker
) -> None:
    await store.apply("s", 0, 1, visits_commit(("a", "ann", "1")))
    ttls = {key: ttl for key, ttl in make_store.key_ttls().items() if f"minute:{NOON.minute}:" in key}
    assert len(ttls) == 6  # the counts and the sketches of the event's users, of its sessions, and of all sessions
    assert all(0 < ttl <= VISITOR_MINUTES_TTL_SECONDS for ttl in ttls.values())


@on_every_store(
    memory=pytest.mark.fails_on_mutant(
        "visits without amounts are lost", "app/stores/rules.py", " or not group.amounts", ""
    ),
    cluster=pytest.mark.fails_on_mutant(
        "a shard counts the visits of another one",
        "app/stores/redis_sharded.py",
        "if group.key or len(group.amounts) != 1:",
        "if group.key or len(group.amounts) > 1:",
    ),
)
async def test_visits_may_follow_their_hits_in_a_commit_of_their_own(store: CounterStore) -> None:
    """The visits of a large batch are written in several commits, after the counts of its hits."""
    visits = [Visit(event, 1, user, None) for event in ("a", "b", "c") for user in ("ann", "eve", "ann")]
    await store.apply("s", 0, 1, [HitGroup(NOON, {"a": 3, "b": 3, "c": 3})])
    result = await store.apply("s", 1, 2, [HitGroup(NOON, {}, visits=visits, atomic=False)])
    assert [group.is_counted for group in result.groups] == [True]
    day = Bucket("day", NOON.day)
    for event in ("a", "b", "c"):
        assert await store.read([visitors_of("user", event, day)]) == [{"ann": 2, "eve": 1}]
    assert await store.visits("user", "ann", [NOON.day]) == [{"a": 2, "b": 2, "c": 2}]
    assert await store.read([visitors_of("user", ALL_EVENTS, day)]) == [{"ann": 6, "eve": 3}]
    assert (await store.counts(NOON.day))["a"] == 3


@on_every_store(
    memory=pytest.mark.fails_on_mutant(
        "memory stores any number of visitors",
        "app/stores/memory.py",
        "len(counts) >= rules.STORED",
        "len(counts) >= 1e9 * rules.STORED",
    ),
    sqlite=pytest.mark.fails_on_mutant(
        "SQLite stores any number of visitors",
        "app/stores/sqlite_tables.py",
        "        if later:\n",
        "        later = []\n        if later:\n",
    ),
)
async def test_a_bucket_stores_a_limited_number_of_visitors(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", 10)
    monkeypatch.setattr(rules, "STORED_VISITORS_MAX", 50)
    bucket = visitors_of("user", "a", Bucket("day", NOON.day))
    for offset in range(2):  # also those that come again are counted once
        visits = [("a", f"u{i}", None) for i in range(400)]
        await store.apply("s", offset, offset + 1, visits_commit(*visits))
    assert (await store.sizes([bucket]))[0] <= 50
    number, error = await store.count_distinct([bucket])
    assert abs(number - 400) <= 400 * 4 * error
    assert error == hyperloglog.ERROR


@pytest.mark.fails_on_mutant(
    "sizes are cached without bound",
    "app/stores/sqlite_tables.py",
    "            if len(self._ranked) >= CACHED_SIZES_MAX:\n",
    "            if False:\n",
)
@pytest.mark.fails_on_mutant(
    "a dropped size is 0",
    "app/stores/sqlite_tables.py",
    "self._ranked[bucket], self._stored[bucket] = self._db.execute(sql, (self._bucket_id(bucket),)).fetchone()",
    "self._ranked[bucket], self._stored[bucket] = 0, 0",
)
async def test_sqlite_caches_a_limited_number_of_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_tables, "CACHED_SIZES_MAX", 10)
    monkeypatch.setattr(rules, "RANKED_VISITORS_MAX", 2)
    store = SqliteStore(tmp_path / "tally.db", StoreLimits(1000))
    await store.open()
    for offset in range(100):
        event = f"e{offset % 20}"
        await store.apply("s", offset, offset + 1, visits_commit((event, f"u{offset}", None), event=event))
    assert len(store._writer.members._ranked) <= 10
    (users,) = await store.read([visitors_of("user", "e0", Bucket("day", NOON.day))])
    assert sorted(users.values()) == [0, 0, 0, 1, 1]
    await store.close()
