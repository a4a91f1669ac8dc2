"""Notes on every store: one for each id, no more than the limit, and none before the cutoff."""

import asyncio

import pytest

from app import notes as notes_module
from app.notes import Note, Notes
from app.stores.base import CounterStore
from tests.stores.contract.support import on_every_store

NOTES = "app/notes.py"


def note(at: int, id_: str = "", event: str | None = None) -> Note:
    return Note(id_ or f"id-{at}", at, f'deployed "v{at}" 😀', event)


@on_every_store(
    memory=pytest.mark.fails_on_mutant("a retry returns its own note", NOTES, "return found", "return note"),
    sqlite=pytest.mark.fails_on_mutant("the end is included", NOTES, "<= note.at < end", "<= note.at <= end"),
)
async def test_notes_are_listed_by_time_and_event(store: CounterStore) -> None:
    notes = Notes(store.records)
    for added in (note(30), note(10, event="a"), note(20, event="b"), note(40)):
        assert await notes.add(added) is added
    assert await notes.add(note(99, "id-30")) == note(30)
    assert [n.at for n in await notes.list_between(10, 40)] == [10, 20, 30]
    assert await notes.list_between(0, 100, "a") == [note(10, event="a"), note(30), note(40)]
    assert await notes.delete("id-30") == note(30)
    assert await notes.delete("id-30") is None
    assert [n.at for n in await notes.list_between(0, 100)] == [10, 20, 40]


@on_every_store(
    memory=pytest.mark.fails_on_mutant("no limit", NOTES, "[: max(0, len(saved) + 1 - NOTES_MAX)]", "[:0]"),
    sqlite=pytest.mark.fails_on_mutant(
        "one more than the limit", NOTES, "len(saved) + 1 - NOTES", "len(saved) - NOTES"
    ),
    redis=pytest.mark.fails_on_mutant("excess notes stay", NOTES, "max(0, len(saved) - NOTES_MAX)", "0"),
)
async def test_beyond_the_limit_the_earliest_note_is_deleted(
    store: CounterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes_module, "NOTES_MAX", 5)
    notes = Notes(store.records)
    nodes = [notes, Notes(store.records)]
    await asyncio.gather(*(nodes[at % 2].add(note(at)) for at in range(10, 40)))
    assert len(await notes.list_between(0, 100)) in range(5, 8)
    monkeypatch.setattr(notes_module, "NOTES_MAX", 3)
    await notes.prune(0)
    assert [n.at for n in await notes.list_between(0, 100)] == [37, 38, 39]
    await notes.prune(100)
    monkeypatch.setattr(notes_module, "NOTES_MAX", 5)
    for at in (*range(50, 55), 1):
        await notes.add(note(at))
    assert [n.at for n in await notes.list_between(0, 100)] == [1, 51, 52, 53, 54]
    await notes.prune(53)
    assert [n.at for n in await notes.list_between(0, 100)] == [53, 54]


async def test_concurrent_retries_add_one_note(store: CounterStore) -> None:
    notes = Notes(store.records)
    found = await asyncio.gather(*(notes.add(note(at, "one")) for at in range(10)))
    assert [*await notes.list_between(0, 100)] == [found[0]] == list(set(found))
    deleted = await asyncio.gather(*(notes.delete("one") for _ in range(5)))
    assert sum(n is not None for n in deleted) == 1
