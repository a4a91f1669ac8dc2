"""Buckets: where counts are stored, by time step, start and dimension."""

from typing import Literal, NamedTuple

ALL_EVENTS = ""  # the member under which a bucket keeps the sum of all events; no event can have this name

Step = Literal["minute", "hour", "day"]
VisitorKind = Literal["user", "session"]


class Bucket(NamedTuple):
    """A map of members to counts, for one time step that begins at the UTC second `start`.

    `dimension` says what the members are: "" for events; "user:<event>" or "session:<event>" for visitor ids;
    "sketch:" before one of those for the registers of a HyperLogLog; or one of the constants below, which
    administrative changes write.
    """

    step: str
    start: int
    dimension: str = ""


TOTAL = Bucket("total", 0)  # all-time totals
CORRECTION = "offset"  # dimension: amounts to add to a day's hits to get its counts
BEFORE_RESET = "part:"  # begins a dimension; the UTC second of a reset follows: the counts before that reset
GENERATION = "generation"  # dimension: how often the day's counts were changed, under ALL_EVENTS
CORRECTION_LOG = "log"  # dimension: those changes, each as JSON
SKETCH = "sketch:"  # begins a dimension: the HyperLogLog of the visitors that follow
VISITOR_DIMENSIONS = ("user:", "session:")


def is_event_bucket(bucket: Bucket) -> bool:
    """Return whether the members are events, so that ALL_EVENTS holds their sum."""
    return bucket.dimension in {"", CORRECTION} or bucket.dimension.startswith(BEFORE_RESET)


def visitor_dimensions(event: str) -> set[str]:
    """Return every dimension that holds an event's visitors."""
    return {f"{prefix}{kind}:{event}" for prefix in ("", SKETCH) for kind in ("user", "session")}
