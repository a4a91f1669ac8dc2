"""A SQLite file, Redis data, a spool file and an export of an earlier version can be opened, replayed and imported."""

import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from app.domain.calendar import TimeSlot
from app.domain.counting import HitGroup, Visit
from app.main import create_app
from app.settings import Settings
from app.stores.base import CounterStore
from app.stores.results import GroupResult, Value
from tests.support.redis_servers import Cluster, RedisServer
from tests.support.servers import ADMIN_KEY, AS_ADMIN, SettableClock, eventually

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "expected.json").read_text())
STORES = ["tally.db", "redis.rdb", "redis-shards.rdb"]
SPOOL = "app/stores/spool_file.py"

mutant = pytest.mark.fails_on_mutant
LOG_LOST = mutant("the redo log is lost", "app/stores/sqlite_tables.py", "        self._replay_log()", "        pass")
REPLAY_LOST = mutant("a replay is read as a hit", "app/stores/results.py", '!= "replayed":', '!= "replay":')
CORRECTION_LOST = mutant("corrections are elsewhere", "app/domain/buckets.py", '= "offset"', '= "correction"')
OLD_LINES_LOST = mutant("older lines are rejected", SPOOL, "    by_event: bool = False,", "    by_event: bool,")


def on_each_store(mutants: dict[str, pytest.MarkDecorator]) -> pytest.MarkDecorator:
    """Run a test on a copy of each store, with the mutants that it fails on there."""
    params = [pytest.param(name, name, marks=[mutants[name]] if name in mutants else [], id=name) for name in STORES]
    return pytest.mark.parametrize(("url", "name"), params, indirect=["url"])


def expected(name: str) -> dict[str, Any]:
    """What a store must answer: as `tally.db` does, except for what its own entry says."""
    base, own = EXPECTED["tally.db"], EXPECTED[name]
    return {**base, **own, "reads": {**base["reads"], **own["reads"]}}


@contextlib.asynccontextmanager
async def opened(url: str, spool: Path, at: float) -> AsyncIterator[tuple[httpx.AsyncClient, CounterStore]]:
    """The app on this store, with its clock at `at`."""
    clock = SettableClock()
    clock.go_to(datetime.fromtimestamp(at, UTC).isoformat())
    settings = Settings(TALLY_STORE=url, spool=str(spool), admin_keys=ADMIN_KEY, read_limit="100000/second")
    app = create_app(settings, clock)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tally")
    async with app.router.lifespan_context(app), client:
        yield client, app.state.store


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, own_redis: RedisServer) -> str:
    """The URL of a store in a copy of the file that is the parameter."""
    name = request.param
    if name == "tally.db":
        return f"sqlite:///{shutil.copy(DATA / name, tmp_path / name)}"
    if name == "export.ndjson":
        return "memory://"
    shutil.copy(DATA / name, tmp_path / "dump.rdb")
    own_redis.start("--appendonly", "no")
    if name == "redis.rdb":
        return own_redis.url
    return in_cluster(own_redis, request.getfixturevalue("redis_cluster"))


def in_cluster(source: RedisServer, cluster: Cluster) -> str:
    """Copy every key into a cluster; return the URL of the store of four shards in it."""
    with source.client() as client, redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as target:
        for key in client.scan_iter():
            target.restore(key, 0, client.dump(key))
    return re.sub(r"\?.*", "?shards=4", cluster.url)


async def send(client: httpx.AsyncClient, request: dict[str, Any]) -> httpx.Response:
    return await client.request(request["method"], request["path"], content=request["body"], headers=request["headers"])


async def assert_reads(client: httpx.AsyncClient, reads: dict[str, Any]) -> None:
    for path, answer in reads.items():
        assert (await client.get(path)).json() == answer, path


@on_each_store({"tally.db": LOG_LOST})
async def test_a_stored_count_history_and_audience_are_read_as_before(url: str, name: str, tmp_path: Path) -> None:
    wanted = expected(name)
    async with opened(url, tmp_path / "spool", wanted["at"]) as (client, _):
        await assert_reads(client, wanted["reads"])
    async with opened(url, tmp_path / "spool", wanted["tomorrow"]["at"]) as (client, _):
        await assert_reads(client, wanted["tomorrow"]["reads"])


@on_each_store({"redis.rdb": REPLAY_LOST, "redis-shards.rdb": REPLAY_LOST})
async def test_a_retry_of_a_stored_request_gets_its_first_answer(url: str, name: str, tmp_path: Path) -> None:
    wanted = expected(name)
    async with opened(url, tmp_path / "spool", wanted["at"]) as (client, store):
        for sent in wanted["retries"]["keyed"]:
            answer = await send(client, sent["request"])
            assert (answer.json(), answer.headers["Idempotent-Replayed"]) == (sent["answer"], "true")
        answer = await client.post("/import", content=(DATA / "import.ndjson").read_bytes(), headers=AS_ADMIN)
        assert answer.json().items() >= wanted["retries"]["import"]["answer"].items()
        assert answer.json()["added"] is False
        await assert_retried_commit(store, wanted["retries"]["source"])
        await assert_reads(client, wanted["reads"])


async def assert_retried_commit(store: CounterStore, source: dict[str, Any]) -> None:
    """The last commit of a source is recognised, with the results that were saved."""
    assert await store.get_offset(source["name"]) == source["next"]
    visits = [Visit(*visit) for visit in source["visits"]]
    group = HitGroup(TimeSlot(*source["moment"]), source["counts"], None, True, visits, atomic=False)
    applied = await store.apply(source["name"], source["at"], source["next"], [group])
    assert applied.groups == [GroupResult({event: Value(*value) for event, value in source["values"].items()})]
    assert applied.generations == {int(day): number for day, number in source["generations"].items()}


@on_each_store(dict.fromkeys(STORES, CORRECTION_LOST))
async def test_a_new_hit_adds_to_stored_counts(url: str, name: str, tmp_path: Path) -> None:
    wanted = expected(name)
    async with opened(url, tmp_path / "spool", wanted["at"]) as (client, _):
        answer = await send(client, wanted["afterwards"]["hit"]["request"])
        assert answer.json() == wanted["afterwards"]["hit"]["answer"]
        late = await send(client, wanted["retries"]["expired"]["request"])
        assert late.json() == wanted["afterwards"]["expired"]
        await assert_reads(client, wanted["afterwards"]["reads"])


async def test_an_export_is_imported(tmp_path: Path) -> None:
    wanted = expected("export.ndjson")
    async with opened("memory://", tmp_path / "spool", wanted["at"]) as (client, _):
        content = (DATA / "export.ndjson").read_bytes()
        for _ in range(2):
            answer = await client.post("/import", content=content, headers=AS_ADMIN)
            assert answer.json()["lines"] == len(content.splitlines()) - 2  # the first and the last line frame it
            await assert_reads(client, wanted["reads"])


@pytest.mark.parametrize("name", ["spool", pytest.param("spool-older", marks=OLD_LINES_LOST)])
async def test_a_spool_file_is_replayed(name: str, tmp_path: Path, own_redis: RedisServer) -> None:
    wanted = {**EXPECTED["spool"], **EXPECTED[name], "reads": {**EXPECTED["spool"]["reads"], **EXPECTED[name]["reads"]}}
    own_redis.start("--appendonly", "no")
    (file,) = (DATA / name).iterdir()
    spool = tmp_path / "spool"
    spool.mkdir()
    shutil.copy(file, spool / f"{file.name.split('.')[0]}{suffix(own_redis.url)}")
    async with opened(own_redis.url, spool, wanted["at"]) as (client, _):
        await eventually(lambda: not list(spool.iterdir()))
        await assert_reads(client, wanted["reads"])
        for sent, answer in zip(wanted["keyed"], wanted["retryAnswers"], strict=True):
            assert (await send(client, sent["request"])).json() == answer


@pytest.mark.fails_on_mutant("spool files have another name", SPOOL, "hexdigest()[:16]", "hexdigest()[:12]")
@pytest.mark.parametrize("url", EXPECTED["spoolSuffixes"])
def test_a_store_finds_the_spool_files_of_its_earlier_version(url: str) -> None:
    spool = create_app(Settings(TALLY_STORE=url)).state.store._spool
    assert EXPECTED["spoolSuffixes"][url] in spool._suffixes


def suffix(url: str) -> str:
    """How the names of a store's spool files end."""
    return create_app(Settings(TALLY_STORE=url)).state.store._spool.suffix
