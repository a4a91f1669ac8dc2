"""Notes on the timeline, such as "v2 deployed", as records of the store."""

import asyncio
from collections.abc import Iterable

import msgspec

from app.stores.records import RecordChange, RecordStore

NOTES_MAX = 1000

_NOTES = "notes"


class Note(msgspec.Struct, frozen=True):
    """A text at a UTC second. It belongs to one event, or to all if `event` is None."""

    id: str
    at: int
    text: str
    event: str | None


class Notes:
    """The notes of a store. Every method may raise StoreUnavailable."""

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self._adding = asyncio.Lock()  # at the limit, concurrent requests would all try to delete the same note

    async def list_between(self, start: float, end: float, event: str | None = None) -> list[Note]:
        """Return the notes from `start` until before `end` (UTC seconds), oldest first.

        If an event is given, they are its own and those of all events.
        """
        notes = [note for note in await self._read() if start <= note.at < end]
        return notes if event is None else [note for note in notes if note.event in {None, event}]

    async def add(self, note: Note) -> Note:
        """Save a note and return it, or return the note that has its id already.

        If there are NOTES_MAX notes, the earliest one is deleted. Nodes that add notes at once may exceed the limit.
        """
        async with self._adding:
            while True:
                saved = await self._read()
                if found := next((other for other in saved if other.id == note.id), None):
                    return found
                excess = list(saved.items())[: max(0, len(saved) + 1 - NOTES_MAX)]
                new = RecordChange(_NOTES, note.id, None, msgspec.json.encode(note).decode())
                if await self._records.change([new, *_deletions(excess)]):
                    return note

    async def delete(self, note_id: str) -> Note | None:
        """Delete a note and return it, or None if there is none."""
        for note, text in (await self._read()).items():
            if note.id == note_id and await self._records.change(_deletions([(note, text)])):
                return note
        return None

    async def prune(self, cutoff: int) -> None:
        """Delete the notes before this UTC second, and the earliest ones if there are more than NOTES_MAX."""
        saved = list((await self._read()).items())
        excess = max(0, len(saved) - NOTES_MAX)
        old = saved[:excess] + [(note, text) for note, text in saved[excess:] if note.at < cutoff]
        if old:
            await self._records.change(_deletions(old))  # if another node has deleted one, the next call does the rest

    async def _read(self) -> dict[Note, str]:
        """Return all notes, oldest first, with the texts of their records."""
        texts = (await self._records.read(_NOTES)).values()
        notes = {msgspec.json.decode(text, type=Note): text for text in texts}
        return dict(sorted(notes.items(), key=lambda item: (item[0].at, item[0].id)))


def _deletions(notes: Iterable[tuple[Note, str]]) -> list[RecordChange]:
    return [RecordChange(_NOTES, note.id, text, None) for note, text in notes]
