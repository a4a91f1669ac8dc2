"""Limits per client address: slowapi's Limiter over a bounded store of our own."""

import ipaddress
import math
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Literal

from limits import RateLimitItem
from limits.storage import Storage
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from slowapi.wrappers import Limit, LimitGroup
from starlette.requests import HTTPConnection

from app.settings import Settings

WINDOWS_MAX = 100_000  # addresses, about 20 MB; beyond it the oldest window is forgotten

Budget = Literal["write", "read"]


class BoundedStorage(Storage):
    """Fixed windows in a dict: no thread, and a flood of addresses cannot fill the memory."""

    STORAGE_SCHEME = ["bounded"]  # noqa: RUF012 # how the base class declares it
    base_exceptions = ()

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False) -> None:
        super().__init__(uri, wrap_exceptions)
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how much is used, and when it ends

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        used, end = self._windows.get(key, (0, 0.0))
        if end <= time.monotonic():
            used, end = 0, time.monotonic() + expiry
            self._windows.pop(key, None)  # a new window is the youngest
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


class _Limit(RateLimitItem):
    """A limit that remembers what clients' windows are called: to say it costs more than to count in them."""

    __slots__ = ("GRANULARITY", "key_for")

    def __init__(self, item: RateLimitItem) -> None:
        super().__init__(item.amount, item.multiples)
        self.GRANULARITY = item.GRANULARITY  # type: ignore[misc] # a slot here
        self.key_for = lru_cache(maxsize=10_000)(item.key_for)  # type: ignore[method-assign] # likewise


class RateLimits:
    def __init__(self, settings: Settings) -> None:
        self._limiter = Limiter(client, storage_uri="bounded://", strategy="fixed-window").limiter
        self._limits: dict[Budget, list[Limit]] = {
            "write": list(LimitGroup(settings.write_limit, client, "write", False, None, None, None, 1, False)),
            "read": list(LimitGroup(settings.read_limit, client, "read", False, None, None, None, 1, False)),
        }
        for limit in (*self._limits["write"], *self._limits["read"]):
            limit.limit = _Limit(limit.limit)

    def charge(self, request: HTTPConnection, budget: Budget, cost: int = 1, paid: int = 0) -> None:
        """Take this cost, at most the whole limit, of which some is paid, or raise RateLimitExceeded."""
        address = client(request)
        for limit in self._limits[budget]:
            if not self._limiter.hit(limit.limit, budget, address, cost=min(cost, limit.limit.amount) - paid):
                end = self._limiter.get_window_stats(limit.limit, budget, address).reset_time
                exceeded = RateLimitExceeded(limit)
                exceeded.detail = f"more than {limit.limit} from one address"
                exceeded.headers = {"Retry-After": str(max(1, math.ceil(end - time.monotonic())))}
                raise exceeded


def client(request: HTTPConnection) -> str:
    return _network((request.scope["client"] or ("127.0.0.1", 0))[0])


@lru_cache(maxsize=10_000)
def _network(address: str) -> str:
    """What is limited: an address, but of IPv6 the /64, which is what one client has."""
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))
