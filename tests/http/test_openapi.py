"""Every route behaves as the OpenAPI document describes it: Schemathesis sends valid and invalid requests.

TALLY_TEST_CASES is the number of random cases; over 200, cases at the bounds of each parameter are added.
"""

import json
import os
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import missing_required_header, negative_data_rejection, positive_data_acceptance

from app.http.countapi_paths import CHANGING_PATHS
from app.main import create_app
from app.settings import Settings
from tests.support.servers import Process, zone_at_noon

CASES = int(os.environ.get("TALLY_TEST_CASES", "200"))
MORE = CASES > 200
KEYS = {f"{role}_keys": f"the-{role}-key-of-this-test" for role in ("read", "write", "admin")}
AS_ADMIN = {"Authorization": f"Bearer {KEYS['admin_keys']}"}
UNLIMITED = {"TALLY_WRITE_LIMIT": "1000000/second", "TALLY_READ_LIMIT": "1000000/second"}
READS = ("/events", "/leaderboard?window=total&limit=1000", "/audience", "/history", "/series?step=day&points=1")


@schemathesis.serializer("application/x-ndjson")
def ndjson(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def document(**keys: str) -> schemathesis.BaseSchema:
    app = create_app(Settings(TALLY_STORE="memory://", countapi=True, **keys))
    config = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": MORE}}})
    return schemathesis.openapi.from_dict(app.openapi(), config=config).exclude(path="/stream")  # a stream has no end


OPEN, CLOSED = document(), document(**KEYS)
OPERATIONS = len(list(CLOSED.get_all_operations()))
random_cases = settings(
    max_examples=max(1, CASES // (2 * OPERATIONS)),
    derandomize=not MORE,  # the same cases in each run, unless more are requested
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Tally:
    """A running application, and a check that rejected requests change no counts."""

    def __init__(self, app: Process, headers: dict[str, str]) -> None:
        self._app, self._headers = app, headers
        self._session = requests.Session()
        self._before = self.state()

    def state(self) -> list[str]:
        return [self._session.get(self._app.url + path, headers=self._headers, timeout=20).text for path in READS]

    def try_(self, case: schemathesis.Case) -> None:
        response = case.call(base_url=self._app.url, session=self._session, headers=self._headers, timeout=20)
        case.validate_response(response, excluded_checks=list(self._too_strict(case)))
        if response.request.method != "GET" or case.path.startswith(CHANGING_PATHS):
            rejected, state = response.status_code >= 400, self.state()
            assert not rejected or state == self._before, "a rejected request was counted"
            self._before = state
            if rejected and response.request.method == "POST":
                assert response.json()["counted"] == "no"

    def _too_strict(self, case: schemathesis.Case) -> Iterator[object]:
        yield positive_data_acceptance  # a schema cannot express all rules of names
        if self._headers or case.path == "/events":  # each request has a key, and any text is a list of names
            yield negative_data_rejection
        if not self._headers:  # admin routes are disabled: 403 and not 401
            yield missing_required_header


def served(tmp_path_factory: pytest.TempPathFactory, **keys: str) -> Iterator[Tally]:
    directory = tmp_path_factory.mktemp("openapi")
    environment = {f"TALLY_{name.upper()}": key for name, key in keys.items()} | UNLIMITED
    store = {
        "TALLY_STORE": f"sqlite:///{directory}/tally.db",
        "TALLY_COUNTAPI": "true",
        "TALLY_TIMEZONE": zone_at_noon(),
    }
    app = Process(directory, **store, **environment).start()
    try:
        yield Tally(app, AS_ADMIN if keys else {})
        assert "Traceback" not in app.log.read_text()
    finally:
        app.kill()


@pytest.fixture(scope="module")
def open_tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tally]:
    yield from served(tmp_path_factory)


@pytest.fixture(scope="module")
def closed_tally(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tally]:
    yield from served(tmp_path_factory, **KEYS)


@OPEN.parametrize()
@random_cases
def test_all_routes_without_keys(case: schemathesis.Case, open_tally: Tally) -> None:
    open_tally.try_(case)


@CLOSED.parametrize()
@random_cases
def test_all_routes_with_keys(case: schemathesis.Case, closed_tally: Tally) -> None:
    closed_tally.try_(case)
