"""Buckets: where counts are stored, by time step, start and dimension."""

from typing import Literal, NamedTuple

ALL_EVENTS = ""  # the member with the sum of all events of a bucket; no event can have this name

Step = Literal["minute", "hour", "day"]
VisitorKind = Literal["user", "session"]


class Bucket(NamedTuple):
    """The key of a map of members to counts, for one time step that starts at the UTC second `start`.

    `step` is a Step or "total". `dimension` defines the members: "" for events; "user:<event>" or "session:<event>"
    for visitor ids; "sketch:" and one of these for the registers of a HyperLogLog; or one of the dimensions below,
    which only administrative changes write.
    """

    step: str
    start: int
    dimension: str = ""


TOTAL = Bucket("total", 0)  # all-time totals
CORRECTION = "offset"  # amounts to add to a day's hits to get its counts
GENERATION = "generation"  # the number of administrative changes of a day, under ALL_EVENTS
CORRECTION_LOG = "log"  # the corrections of a day: each member is a CorrectionRecord as JSON
BEFORE_RESET = "part:"  # a prefix, followed by the UTC second of a reset: the counts before that reset
IMPORTED = "imported:"  # a prefix, followed by the id of a Redis: what was imported from its keys
SKETCH = "sketch:"  # a prefix, followed by a dimension of visitors: their HyperLogLog
VISITOR_DIMENSIONS = ("user:", "session:")  # prefixes, followed by an event or by nothing for all events


def is_event_bucket(bucket: Bucket) -> bool:
    """Return whether the members are events, so that the count of ALL_EVENTS is their sum."""
    return bucket.dimension in {"", CORRECTION} or bucket.dimension.startswith((BEFORE_RESET, IMPORTED))


def visitor_dimensions(event: str) -> set[str]:
    """Return every dimension with visitors of an event."""
    return {f"{prefix}{kind}:{event}" for prefix in ("", SKETCH) for kind in ("user", "session")}
