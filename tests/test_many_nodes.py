"""Several nodes on one Redis, whichever kind that is: each of them and each of their pages shows the same numbers."""

from pathlib import Path

from conftest import GuardedRedis, serving

from app.settings import Settings

LIMITS = {"write_limit": "100000/second", "read_limit": "100000/second"}


def settings(url: str, directory: Path) -> Settings:
    return Settings(TALLY_STORE=url, spool=str(directory / "spool"), **LIMITS)


async def test_a_redis_behind_tls_needs_to_let_its_user_do_only_what_tally_asks(
    tmp_path: Path, guarded_redis: GuardedRedis
) -> None:
    async with serving(settings(guarded_redis.url, tmp_path)) as tally, tally.client() as client:
        first = await client.post("/event/a", headers={"Idempotency-Key": "k"})
        again = await client.post("/event/a", headers={"Idempotency-Key": "k"})
        assert (first.json()["ack"], again.json()["count"], again.headers["Idempotency-Replayed"]) == (
            "redis",
            1,
            "true",
        )
        assert (await client.post("/events", json={"a": 2, "b": 1})).json()["ack"] == "redis"
        assert (await client.get("/events")).json() == {"a": 3, "b": 1}
        assert (await client.get("/history")).json() == []
        assert (await client.get("/health")).json()["status"] == "ok"
        await tally.app.state.jobs.get_job("close_day").func()  # what is too old is forgotten
        assert (await client.get("/health")).json()["status"] == "ok"


async def test_a_redis_whose_certificate_nobody_vouches_for_is_not_spoken_to(
    tmp_path: Path, guarded_redis: GuardedRedis
) -> None:
    async with serving(settings(guarded_redis.unverifiable, tmp_path)) as tally, tally.client() as client:
        assert (await client.post("/event/a")).json()["ack"] == "spooled"
    with guarded_redis.client() as operator:
        assert operator.dbsize() == 0
