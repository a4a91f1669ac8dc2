"""Rate limits: client addresses, windows, and the bound on memory."""

import httpx
import pytest
from starlette.requests import Request

from app.http import rate_limits
from app.http.errors import Problem
from app.http.rate_limits import BoundedStorage, RateLimits, client_address
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
    assert client_address(request_from(address)) == limited


def test_the_number_of_windows_is_bounded_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "WINDOWS_MAX", 3)
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


def test_several_limits_apply_together() -> None:
    limits = RateLimits(Settings(TALLY_STORE="memory://", write_limit="5/minute;7/hour"))
    for _ in range(5):
        limits.consume(request_from("203.0.113.9"), "write")
    with pytest.raises(Problem) as exceeded:
        limits.consume(request_from("203.0.113.9"), "write")
    assert exceeded.value.status_code == 429
    assert 1 <= int(exceeded.value.headers["Retry-After"]) <= 60
    limits.consume(request_from("203.0.113.9"), "read")
    limits.consume(request_from("203.0.113.10"), "write")


@pytest.mark.parametrize(("trusted", "expected"), [("", 429), ("127.0.0.1", 200)])
def test_a_forwarded_address_is_used_only_from_a_trusted_proxy(process, trusted: str, expected: int) -> None:
    app = process(TALLY_STORE="memory://", TALLY_WRITE_LIMIT="1/minute", TALLY_TRUSTED_PROXIES=trusted)
    with httpx.Client(base_url=app.url) as http:
        statuses = [http.post("/event/a", headers={"X-Forwarded-For": f"203.0.113.{i}"}).status_code for i in range(3)]
    assert statuses == [200, expected, expected]
