"""The limiter's own parts: addresses, windows, and the bound on memory."""

import httpx
import pytest
from slowapi.errors import RateLimitExceeded
from starlette.requests import Request

from app.http import rate_limits as limits
from app.http.rate_limits import BoundedStorage, RateLimits, client
from app.settings import Settings


def request_from(address: str) -> Request:
    return Request({"type": "http", "client": (address, 1), "headers": []})


@pytest.mark.parametrize(
    ("address", "limited"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(address: str, limited: str) -> None:
    assert client(request_from(address)) == limited


def test_windows_are_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WINDOWS_MAX", 3)
    storage = BoundedStorage()
    for key in "abcd":
        storage.incr(key, 60)
    assert len(storage._windows) == 3
    assert [storage.get(key) for key in "abcd"] == [0, 1, 1, 1]


def test_a_window_ends() -> None:
    storage = BoundedStorage()
    storage.incr("a", 60, amount=5)
    assert storage.get("a") == 5
    storage._windows["a"] = (5, 0.0)
    assert storage.get("a") == 0
    assert storage.incr("a", 60) == 1


def test_several_limits_hold_together() -> None:
    both = RateLimits(Settings(TALLY_STORE="memory://", write_limit="5/minute;7/hour"))
    for _ in range(5):
        both.charge(request_from("203.0.113.9"), "write")
    with pytest.raises(RateLimitExceeded) as exceeded:
        both.charge(request_from("203.0.113.9"), "write")
    assert 1 <= int(exceeded.value.headers["Retry-After"]) <= 60
    both.charge(request_from("203.0.113.9"), "read")
    both.charge(request_from("203.0.113.10"), "write")


@pytest.mark.parametrize(("trusted", "expected"), [("", 429), ("127.0.0.1", 200)])
def test_a_forwarded_address_counts_only_from_a_trusted_proxy(process, trusted: str, expected: int) -> None:
    app = process(TALLY_STORE="memory://", TALLY_WRITE_LIMIT="1/minute", TALLY_TRUSTED_PROXIES=trusted)
    with httpx.Client(base_url=app.url) as http:
        statuses = [http.post("/event/a", headers={"X-Forwarded-For": f"203.0.113.{i}"}).status_code for i in range(3)]
    assert statuses == [200, expected, expected]
