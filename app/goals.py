"""Goals: the count or the total that an event should reach. The store keeps at most one for each event."""

from typing import Annotated

import msgspec

from app.domain.counting import COUNT_MAX
from app.stores.base import StoreUnavailable
from app.stores.records import RecordChange, RecordStore

GOALS_MAX = 100  # every open dashboard reads all of them
ATTEMPTS_MAX = 10  # to change a goal that another node changes at the same time
_GOALS = "goals"

Target = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class TooManyGoals(Exception):
    """There are GOALS_MAX goals. Nothing was changed."""


class Goal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an event should reach: the count of each day, or the total. Exactly one is set."""

    count: Target | None = None
    total: Target | None = None

    def error(self) -> str:
        """Return what is wrong with this combination of fields, or ""."""
        numbers = [self.count, self.total]
        is_one = numbers.count(None) == 1 and 0 not in numbers
        return "" if is_one else "needs exactly one of count and total, which is at least 1"


class Goals:
    """The goals of a store by event. Methods raise StoreUnavailable while the store is unreachable."""

    def __init__(self, records: RecordStore) -> None:
        self._records = records

    async def read(self) -> dict[str, Goal]:
        """Return all goals, in the order of their events."""
        texts = await self._records.read(_GOALS)
        return {event: msgspec.json.decode(text, type=Goal) for event, text in sorted(texts.items())}

    async def set(self, event: str, goal: Goal) -> None:
        """Set the goal of an event. Raises TooManyGoals."""
        await self._change(event, msgspec.json.encode(goal).decode())

    async def delete(self, event: str) -> Goal | None:
        """Delete the goal of an event and return it, or None if there is none."""
        before = await self._change(event, None)
        return None if before is None else msgspec.json.decode(before, type=Goal)

    async def _change(self, event: str, after: str | None) -> str | None:
        """Replace the record of an event. Return the one before."""
        for _ in range(ATTEMPTS_MAX):
            texts = await self._records.read(_GOALS)
            before = texts.get(event)
            if after and before is None and len(texts) >= GOALS_MAX:  # several at the same moment may exceed it
                raise TooManyGoals
            if before == after or await self._records.change([RecordChange(_GOALS, event, before, after)]):
                return before
        raise StoreUnavailable("the goal was changed at the same time; try again")
