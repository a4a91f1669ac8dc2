"""Every setting, read once from the environment (prefix TALLY_) and then frozen."""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from limits import parse_many
from pydantic import AfterValidator, AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

STORES = r"^(sqlite:///.|memory://$|rediss?(\+sentinel|\+cluster)?://.|unix://.)"

Rate = Annotated[str, AfterValidator(lambda notation: parse_many(notation) and notation)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TALLY_", frozen=True, extra="ignore", populate_by_name=True)

    host: str = Field(default="127.0.0.1", description="The address to listen on; 0.0.0.0 for every one.")
    port: int = Field(default=8000, ge=1, le=65535, description="The port to listen on.")
    store: str = Field(
        default="sqlite:///data/tally.db",
        pattern=STORES,
        validation_alias=AliasChoices("TALLY_STORE", "REDIS_URL"),
        description="Where counts live: `sqlite:///path`, `memory://`, or `redis://host:port/db` (also `rediss://`, "
        "`unix://path`, `redis+sentinel://`, `redis+cluster://`). `REDIS_URL` is read where this is not set.",
    )
    timezone: ZoneInfo = Field(default=ZoneInfo("UTC"), description="The zone whose midnight ends a day.")
    write_limit: Rate = Field(default="1000/second", description="Hits from one client address.")
    read_limit: Rate = Field(default="200/second", description="Reads from one client address.")
    events_max: int = Field(default=100_000, ge=1, le=10_000_000, description="Event names; a further one gets a 429.")
    keys_max: int = Field(
        default=1_000_000,
        ge=10,
        le=100_000_000,
        description="Idempotency-Keys kept for 24 h; a further one gets a 503.",
    )
    live_interval_ms: int = Field(
        default=10,
        ge=0,
        le=10_000,
        description="The shortest time between two messages to a page, in ms, while changes come faster than that.",
    )
    minutes_kept_hours: int = Field(default=48, ge=24, le=8760, description="How long minutes are kept, in hours.")
    hours_kept_days: int = Field(default=90, ge=1, le=3660, description="How long hours are kept, in days.")
    days_kept: int = Field(default=400, ge=8, le=36_600, description="How many days are kept; totals are for good.")
    trusted_proxies: str = Field(default="", description="Addresses whose X-Forwarded-For counts, comma-separated.")
    countapi: bool = Field(default=False, description="Whether CountAPI's routes are served: /hit, /get and /info.")
    spool: str = Field(default="data/spool", description="The directory that keeps hits while Redis is away.")
    spool_max_mb: int = Field(default=512, ge=1, le=1_000_000, description="Its bound in MB; over it hits get a 503.")

    @property
    def store_kind(self) -> Literal["memory", "sqlite", "redis"]:
        scheme = self.store.partition(":")[0]
        return scheme if scheme in {"memory", "sqlite"} else "redis"  # type: ignore[return-value] # as STORES says
