"""Every setting, read once from the environment (prefix TALLY_) and then frozen."""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from limits import parse_many
from pydantic import AfterValidator, AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

STORES = ("sqlite:///", "memory://", "redis://", "rediss://", "unix://")


def _is_rate(notation: str) -> str:
    try:
        parse_many(notation)
    except ValueError:
        raise ValueError("is not a rate such as 1000/second or 100/second;5000/minute") from None
    return notation


Rate = Annotated[str, AfterValidator(_is_rate)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TALLY_", frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="The address to listen on; 0.0.0.0 for every one.")
    port: int = Field(default=8000, ge=1, le=65535, description="The port to listen on.")
    store: str = Field(
        default="sqlite:///data/tally.db",
        validation_alias=AliasChoices("TALLY_STORE", "REDIS_URL"),
        description="Where counts live: sqlite:///path, memory://, redis://host:port/db. "
        "REDIS_URL is read where this is not set.",
    )
    timezone: str = Field(default="UTC", description="The zone whose midnight ends a day, such as Europe/Berlin.")
    write_limit: Rate = Field(default="1000/second", description="Hits one client address may send.")
    read_limit: Rate = Field(default="200/second", description="Reads one client address may make.")
    events_max: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Event names kept; a further new one is refused."
    )
    trusted_proxies: str = Field(
        default="", description="Addresses whose X-Forwarded-For is believed, comma-separated."
    )
    spool: str = Field(default="data/spool", description="The directory that keeps hits while Redis is away.")
    spool_max_mb: int = Field(
        default=512, ge=1, le=1_000_000, description="The spool's bound in MB; over it hits get a 503."
    )

    @field_validator("store")
    @classmethod
    def _store_is_known(cls, url: str) -> str:
        if not url.startswith(STORES):
            raise ValueError(f"must begin with one of {', '.join(STORES)}")
        return url

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is not a zone such as Europe/Berlin") from None
        return name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def store_kind(self) -> Literal["memory", "sqlite", "redis"]:
        scheme = self.store.partition(":")[0]
        return scheme if scheme in {"memory", "sqlite"} else "redis"  # type: ignore[return-value] # as STORES says
