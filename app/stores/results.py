"""Results of a commit: values, rejections and replays, and the form in which Redis and SQLite save them."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from app.domain.buckets import ALL_EVENTS
from app.domain.counting import Commit, HitGroup

# How durable an acknowledged hit is.
Ack = Literal["memory", "disk", "redis", "spooled", "kafka"]
# Why hits were rejected: the limit on event names ("full") or on idempotency keys ("keys") is reached, a count or total
# would exceed COUNT_MAX, or the idempotency key belongs to another request ("mismatch").
Reason = Literal["full", "keys", "overflow", "mismatch"]


class Value(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event's count of one day, and its all-time total."""

    count: int
    total: int


class GroupResult(msgspec.Struct, frozen=True, gc=False):
    """The result of one hit group.

    `values` maps each accepted event to its values right after the group was counted. `rejected` maps each rejected
    event to the reason, or ALL_EVENTS if the whole group was rejected. `replayed_on` is the date (ISO 8601) of the
    first request with the same idempotency key, or "" if there was none. After a replay `values` are those of the first
    request, and nothing was counted now.
    """

    values: Mapping[str, Value] = {}
    rejected: Mapping[str, Reason] = {}
    replayed_on: str = ""

    @property
    def reason(self) -> Reason | None:
        """The reason why the whole group was rejected, or None."""
        return self.rejected.get(ALL_EVENTS)

    @property
    def counted(self) -> Mapping[str, Value]:
        """The values of the events that this commit counted."""
        return {} if self.replayed_on else self.values

    @property
    def is_counted(self) -> bool:
        """Whether this commit counted every event of the group."""
        return not (self.rejected or self.replayed_on)


def reject(reason: Reason) -> GroupResult:
    """Return the result of a group of which no event is counted."""
    return GroupResult({}, {ALL_EVENTS: reason})


class ApplyResult(NamedTuple):
    """One result per hit group, in the order of the commit, and how durable the commit is.

    `generations` maps a day's start (UTC second) to the generation that the values of that day belong to. A day that is
    missing has generation 0.
    """

    groups: Sequence[GroupResult]
    ack: Ack
    generations: Mapping[int, int] = {}


# The saved form of a GroupResult: [count, total, ...] in the order of the group's events, where a rejected event has
# its reason and 0; ["replayed", date, count, total, ...]; or [reason].
Row = list[int | str]


def encode_result(commit: Commit, result: ApplyResult) -> str:
    """Return the JSON that a store saves next to a source's offset: generations, then a row per hit group."""
    return msgspec.json.encode([result.generations, *map(to_row, commit, result.groups)]).decode()


def decode_result(commit: Commit, text: str, ack: Ack) -> ApplyResult:
    """Return the result that `encode_result` saved. Raises ValueError if a row has the shape of another group."""
    generations, *rows = msgspec.json.decode(text)
    groups = [from_row(group, row) for group, row in zip(commit, rows, strict=False)]
    return ApplyResult(groups, ack, {int(day): n for day, n in generations.items()})


def to_row(group: HitGroup, result: GroupResult) -> Row:
    """Return the saved form of a group's result."""
    if result.reason:
        return [result.reason]
    row: Row = ["replayed", result.replayed_on] if result.replayed_on else []
    if not result.rejected:  # then the values have the order of the group's events
        row += [number for value in result.values.values() for number in (value.count, value.total)]
        return row
    for event in group.amounts:
        if value := result.values.get(event):
            row += (value.count, value.total)
        else:
            row += (result.rejected[event], 0)
    return row


def from_row(group: HitGroup, row: Row) -> GroupResult:
    """Return the result that `to_row` saved. Raises ValueError if it belongs to a group of another shape."""
    if group.atomic and row and isinstance(row[0], str):
        if row[0] != "replayed":
            return reject(row[0])  # type: ignore[arg-type] # to_row wrote a Reason
        return GroupResult(from_row(group, row[2:]).values, {}, str(row[1]))
    values: dict[str, Value] = {}
    rejected: dict[str, Reason] = {}
    for event, count, total in zip(group.amounts, row[::2], row[1::2], strict=True):
        if isinstance(count, str):
            rejected[event] = count  # type: ignore[assignment] # to_row wrote a Reason
        else:
            values[event] = Value(count, total)  # type: ignore[arg-type] # to_row wrote numbers
    return GroupResult(values, rejected)
