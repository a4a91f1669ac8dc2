"""What a Redis server reports that can break a guarantee: eviction, full memory, and another clock."""

import time
from collections.abc import Mapping
from typing import Any

MEMORY_FRACTION_MAX = 0.8  # of maxmemory; above it, an operator should act
CLOCK_DIFFERENCE_MAX_SECONDS = 60.0


class RedisHealth:
    """The state of one server, from its last reply to INFO."""

    def __init__(self) -> None:
        self._info: Mapping[str, Any] = {}
        self._seconds_ahead = 0.0
        self._server_time_minus_monotonic: float | None = None
        self.forbids_time = False  # whether this user may not run TIME

    def update(self, info: Mapping[str, Any]) -> None:
        """Save a reply to INFO with the default sections. A server that only resembles Redis may lack some fields."""
        self._info = info
        if "server_time_usec" in info:
            server_time = info["server_time_usec"] / 1e6
            self._seconds_ahead = time.time() - server_time
            self._server_time_minus_monotonic = server_time - time.monotonic()

    def server_time(self) -> float | None:
        """Return the present time of the server (UTC seconds), or a little less; None if it does not report it."""
        offset = self._server_time_minus_monotonic
        return None if offset is None else time.monotonic() + offset

    @property
    def has_wrong_clock(self) -> bool:
        """Whether the clock of this machine and that of Redis differ, so that one of them is wrong."""
        return abs(self._seconds_ahead) > CLOCK_DIFFERENCE_MAX_SECONDS

    @property
    def evicts(self) -> bool:
        """Whether Redis deletes keys when its memory is full."""
        return bool(self._info.get("maxmemory")) and self._info.get("maxmemory_policy", "noeviction") != "noeviction"

    def reasons(self) -> tuple[str, ...]:
        """Return a sentence for each problem, for operators."""
        found = []
        limit, used = self._info.get("maxmemory", 0), self._info.get("used_memory", 0)
        if self.evicts:
            policy = self._info["maxmemory_policy"]
            found.append(f"Redis may evict counts: its maxmemory-policy is {policy}; set it to noeviction")
        if evicted := self._info.get("evicted_keys", 0):
            found.append(f"Redis has evicted {evicted} keys since it started: counts or idempotency keys are lost")
        if limit and used > MEMORY_FRACTION_MAX * limit:
            found.append(f"Redis uses {used / limit:.0%} of its maxmemory; hits are spooled when it is full")
        if self.forbids_time:
            found.append(
                "Redis forbids the command TIME, so a correction, deletion or reset that was answered with 503 may be"
                " applied later; add +time to the access list"
            )
        if self.has_wrong_clock:
            direction = "ahead of" if self._seconds_ahead > 0 else "behind"
            found.append(
                f"this node's clock is {abs(self._seconds_ahead):.0f} s {direction} the clock of Redis;"
                " correct it, until then this node deletes no old counts"
            )
        return tuple(found)
