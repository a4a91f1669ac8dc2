"""GET /backup: one at a time, and a clear error where there is nothing to copy."""

from pathlib import Path

import httpx
import pytest

from app.http.routes import export_import
from app.stores import sqlite_backup
from tests.http.clients import asgi_client
from tests.support.redis_servers import RedisServer
from tests.support.scenarios.backups import restored_totals
from tests.support.servers import AS_ADMIN, SettableClock, eventually, serving, settings_for


async def test_a_backup_is_a_file_of_sqlite_with_all_counts(client: httpx.AsyncClient, tmp_path: Path) -> None:
    await client.post("/events", json={"a": 3, "b": 4})
    response = await client.get("/backup", headers=AS_ADMIN)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/vnd.sqlite3")
    assert response.headers["content-length"] == str(len(response.content))
    (tmp_path / "restored.db").write_bytes(response.content)
    assert await restored_totals(tmp_path / "restored.db") == ({"": 7, "a": 3, "b": 4}, [])
    assert not (tmp_path / "backups").exists()


async def test_head_makes_no_backup(client: httpx.AsyncClient) -> None:
    assert (await client.head("/backup", headers=AS_ADMIN)).status_code == 405


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_store_without_a_file_is_a_problem_that_says_what_to_do(
    kind: str, tmp_path: Path, redis_server: RedisServer, clock: SettableClock
) -> None:
    async with asgi_client(settings_for(kind, tmp_path, redis_server), clock) as client:
        problem = (await client.get("/backup", headers=AS_ADMIN)).json()
    assert (problem["status"], problem["code"]) == (409, "no-store-file")
    assert "docs/how-to/backup.md" in problem["detail"]


async def test_a_full_disk_is_a_problem_that_names_it(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_backup, "FREE_BYTES_MIN", 10**18)
    response = await client.get("/backup", headers=AS_ADMIN)
    assert (response.status_code, response.json()["code"]) == (503, "backup-failed")
    assert "make room" in response.json()["detail"]
    assert response.headers["retry-after"] == "60"


@pytest.mark.fails_on_mutant(
    "a slow download keeps its file open",
    "app/http/routes/export_import.py",
    "            self._file.close()",
    "            pass",
)
@pytest.mark.fails_on_mutant(
    "two downloads at once", "app/backups.py", "not self._download.closed:", "not self._download:"
)
async def test_one_backup_is_downloaded_at_a_time(
    tmp_path: Path, redis_server: RedisServer, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        export_import, "CHUNK_BYTES", 1000
    )  # so that the file does not fit into the buffers of the connection
    async with (
        serving(settings_for("sqlite", tmp_path, redis_server), clock, buffer=4096) as server,
        server.client() as client,
    ):
        async with client.stream("GET", "/backup", headers=AS_ADMIN) as response:
            assert response.status_code == 200
            second = await client.get("/backup", headers=AS_ADMIN)
            assert (second.status_code, second.json()["code"]) == (409, "backup-running")
            assert (await client.post("/event/a")).status_code == 200
            await response.aread()

        async def can_download() -> bool:  # as soon as the server has closed its file
            return (await client.get("/backup", headers=AS_ADMIN)).status_code == 200

        await eventually(can_download)
