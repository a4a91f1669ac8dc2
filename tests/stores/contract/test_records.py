"""Records: changes compare and set, all or none, and survive a restart."""

import asyncio

import pytest

from app.stores.base import CounterStore
from app.stores.records import RecordChange
from tests.stores.contract.support import DURABLE_STORES, StoreMaker, on_every_store

TEXT = '{"event": "é \\" \\\\ 😀", "n": 9007199254740991}'

NOT_COMPARED = pytest.mark.fails_on_mutant(
    "records are not compared", "app/stores/lua/records.lua", "~= ARGV[i + 2] then return 0", "== false then return 0"
)


async def test_an_empty_collection_has_no_records(store: CounterStore) -> None:
    assert (await store.records.read("alerts"), await store.records.size("alerts")) == ({}, 0)


@on_every_store(
    memory=pytest.mark.fails_on_mutant(
        "records are not compared", "app/stores/records.py", ".get(id_) != before", ".get(id_) == ''"
    ),
    sqlite=pytest.mark.fails_on_mutant(
        "records are not compared", "app/stores/sqlite_records.py", "(found[0] if found else None) != before", "False"
    ),
    redis=NOT_COMPARED,
    spooled=NOT_COMPARED,
    cluster=NOT_COMPARED,
)
async def test_a_change_is_done_only_if_every_record_is_as_expected(store: CounterStore) -> None:
    records = store.records
    assert await records.change([RecordChange("alerts", "a", None, TEXT), RecordChange("other", "a", None, "1")])
    for change in (
        RecordChange("alerts", "a", None, "2"),
        RecordChange("alerts", "a", TEXT + " ", None),
        RecordChange("alerts", "b", "1", "2"),
    ):
        assert not await records.change([RecordChange("other", "a", "1", "2"), change])
    assert (await records.read("alerts"), await records.read("other")) == ({"a": TEXT}, {"a": "1"})
    moved = [RecordChange("alerts", "a", TEXT, None), RecordChange("alerts", "b", None, TEXT)]
    assert await records.change([*moved, RecordChange("other", "a", "1", "2")])
    assert (await records.read("alerts"), await records.read("other")) == ({"b": TEXT}, {"a": "2"})
    assert await records.size("alerts") == 1


async def test_a_collection_is_dropped_in_the_same_step(store: CounterStore) -> None:
    records = store.records
    await records.change([RecordChange("other", str(i), None, "1") for i in range(2000)])
    assert await records.size("other") == 2000
    assert not await records.change([RecordChange("alerts", "a", "1", "2")], "other")
    assert await records.size("other") == 2000
    assert await records.change([RecordChange("alerts", "a", None, "2")], "other")
    assert (await records.read("other"), await records.read("alerts")) == ({}, {"a": "2"})


async def test_one_of_many_concurrent_changes_of_a_record_succeeds(store: CounterStore) -> None:
    changes = [store.records.change([RecordChange("alerts", "a", None, str(i))]) for i in range(20)]
    done = await asyncio.gather(*changes)
    assert await store.records.read("alerts") == {"a": str(done.index(True))}
    assert done.count(True) == 1


@on_every_store(DURABLE_STORES)
async def test_records_survive_a_restart(make_store: StoreMaker) -> None:
    for expected in ({}, {"a": TEXT}):
        store = make_store()
        await store.open()
        assert await store.records.read("alerts") == expected
        await store.records.change([RecordChange("alerts", "a", None, TEXT)])
        await store.close()
