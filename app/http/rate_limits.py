"""Rate limits per client address: slowapi's Limiter with a storage of bounded size."""

import ipaddress
import math
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Literal

from limits import RateLimitItem, parse_many
from limits.storage import Storage
from slowapi import Limiter
from starlette.requests import HTTPConnection

from app.http.errors import Problem
from app.http.problem_kinds import RATE_LIMIT
from app.settings import Settings

WINDOWS_MAX = 100_000  # about 40 MB; beyond it the oldest window is dropped

LimitName = Literal["write", "read"]


class BoundedStorage(Storage):
    """Fixed windows in a dictionary of bounded size.

    The memory storage of `limits` starts a thread and has no bound, so that many addresses could fill the memory.
    """

    STORAGE_SCHEME = ["bounded"]  # noqa: RUF012 # the base class declares it this way
    base_exceptions = ()

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False) -> None:
        super().__init__(uri, wrap_exceptions)
        # By key: the amount used, and the end of the window in seconds of time.monotonic().
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        used, end = self._windows.get(key, (0, 0.0))
        if end <= time.monotonic():
            used, end = 0, time.monotonic() + expiry
            self._windows.pop(key, None)  # so that the new window becomes the last in order
        self._windows[key] = (used + amount, end)
        if len(self._windows) > WINDOWS_MAX:
            self._windows.popitem(last=False)
        return used + amount

    def get(self, key: str) -> int:
        return self._windows[key][0] if self.get_expiry(key) > time.monotonic() else 0

    def get_expiry(self, key: str) -> float:
        return self._windows.get(key, (0, 0.0))[1]

    def check(self) -> bool:
        return True

    def reset(self) -> None:
        self._windows.clear()

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)


class CachedKeyLimit(RateLimitItem):
    """A rate limit that caches the storage keys of clients: to build one takes longer than to count a hit."""

    __slots__ = (
        "_cached_key_for",
        "_expiry",
        "_limit",
    )  # the metaclass of limits leaves its items without a dictionary

    def __init__(self, limit: RateLimitItem) -> None:
        super().__init__(limit.amount, limit.multiples)
        self._limit, self._expiry = limit, limit.get_expiry()
        self._cached_key_for = lru_cache(maxsize=10_000)(limit.key_for)

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return self._cached_key_for(*identifiers)

    def get_expiry(self) -> int:
        return self._expiry

    def __str__(self) -> str:
        return str(self._limit)


class RateLimits:
    """The write limit and the read limit of each client."""

    def __init__(self, settings: Settings) -> None:
        self._limiter = Limiter(client_address, storage_uri="bounded://", strategy="fixed-window").limiter
        self._limits = {
            "write": list(map(CachedKeyLimit, parse_many(settings.write_limit))),
            "read": list(map(CachedKeyLimit, parse_many(settings.read_limit))),
        }

    def consume(self, request: HTTPConnection, name: LimitName, cost: int = 1, already_consumed: int = 0) -> None:
        """Take `cost` from the client's limit, less what this request has already consumed of it.

        A cost above the limit takes the whole limit; a cost of 0 only checks it. Raises Problem (429).
        """
        self.consume_for(client_address(request), name, cost, already_consumed)

    def consume_for(self, address: str, name: LimitName, cost: int = 1, already_consumed: int = 0) -> None:
        """Do the same for the client with this address, see `client_address`."""
        for limit in self._limits[name]:
            added = min(cost, limit.amount) - min(already_consumed, limit.amount)
            if not self._limiter.hit(limit, name, address, cost=added):
                window = self._limiter.get_window_stats(limit, name, address)
                seconds_left = max(1, math.ceil(window.reset_time - time.monotonic()))
                headers = {"Retry-After": str(seconds_left)}
                setting = f"TALLY_{name.upper()}_LIMIT"
                detail = f"rate limit exceeded: {limit} per client address ({setting}); retry after {seconds_left} s"
                raise Problem(RATE_LIMIT, detail, headers)


def client_address(request: HTTPConnection) -> str:
    """Return the address that is limited: for IPv6 the /64 network, all of which one client usually has."""
    return _network((request.scope["client"] or ("127.0.0.1", 0))[0])


@lru_cache(maxsize=10_000)
def _network(address: str) -> str:
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))
