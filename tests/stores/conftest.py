"""Fixtures of the store tests."""

import pytest

from app.stores import offline


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline store tries to reconnect after 25 to 75 ms instead of 250 to 750 ms."""
    monkeypatch.setattr(offline, "RETRY_SECONDS", 0.05)
