"""Every setting, read once from the environment (prefix TALLY_) and then frozen."""

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from limits import parse_many
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

STORES = r"^(sqlite:///.|memory://$|rediss?(\+sentinel|\+cluster)?://.|unix://.)"
SERVERS = r"^([^\s,/?]+:\d+(,[^\s,/?]+:\d+)*)?$"
TOPIC = r"^[A-Za-z0-9._-]{1,249}$"

Rate = Annotated[str, AfterValidator(lambda notation: parse_many(notation) and notation)]


def _listed(form: str, otherwise: str) -> BeforeValidator:
    """Makes a list of a text with commas, each item in this form; what is wrong is said without the text."""

    def split(given: str | Iterable[str]) -> list[str]:
        items = re.findall(r"[^,\s]+", given) if isinstance(given, str) else list(given)
        if not all(re.fullmatch(form, item) for item in items):
            raise ValueError(otherwise)
        return items

    return BeforeValidator(split)


_ORIGIN = r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d+)?|\*"
Keys = Annotated[
    tuple[SecretStr, ...],
    NoDecode,
    _listed(r"[!-~]{16,256}", "a key has 16 to 256 visible ASCII characters, without a comma"),
]
Origins = Annotated[
    tuple[str, ...],
    NoDecode,
    _listed(_ORIGIN, "an origin is like https://example.com, in small letters and without a path; or *"),
]
Hosts = Annotated[
    tuple[str, ...], NoDecode, _listed(r"[a-z0-9._-]+|\*", "a host is a name in small letters, without a port; or *")
]


class _KeyFiles(EnvSettingsSource):
    """TALLY_..._KEYS_FILE names a file with the keys, which then stand in no environment."""

    def __call__(self) -> dict[str, str]:
        names = ("admin_keys", "write_keys", "read_keys")
        return {name: self._read(name, path) for name in names if (path := self.env_vars.get(f"tally_{name}_file"))}

    def _read(self, name: str, path: str) -> str:
        variable = f"TALLY_{name.upper()}"
        if self.env_vars.get(variable.lower()):
            raise SettingsError(f"{variable} and {variable}_FILE: set one of them")
        try:
            text = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{variable}_FILE: {error}") from None
        if not text:  # which would open what was to be closed
            raise SettingsError(f"{variable}_FILE: there is no key in {path}")
        return text


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="TALLY_", frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

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
    public_by_max: int = Field(
        default=1_000_000, ge=1, le=1_000_000, description="The largest `by` of a hit from who has no key to write."
    )
    admin_keys: Keys = Field(default=(), description="Keys that may do everything; without one, nobody administers.")
    write_keys: Keys = Field(default=(), description="Keys that may count; without one, everybody may.")
    read_keys: Keys = Field(default=(), description="Keys that may read and watch; without one, everybody may.")
    allowed_origins: Origins = Field(
        default=(), description="Origins whose pages may count and watch, beside Tally's own; `*` for any."
    )
    allowed_hosts: Hosts = Field(
        default=(),
        description="Names by which Tally is asked, beside IP addresses and names without a dot; `*` for any, "
        "as is the default where `TALLY_HOST` is no loopback address.",
    )
    public_badges: bool = Field(default=False, description="Whether badges need no key.")
    embed_origins: Origins = Field(
        default=(), description="Origins whose pages may embed counters, which then need no key; `*` for any."
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

    kafka: str = Field(
        default="",
        pattern=SERVERS,
        description="`host:port` of a Kafka, several comma-separated: POSTs wait in its topic, answered with 202.",
    )
    kafka_topic: str = Field(default="tally.events", pattern=TOPIC, description="The topic in which POSTs wait.")
    kafka_inputs: str = Field(
        default="",
        description="Topics of others whose records are counted, each as `host:port/topic?event=field`, with spaces "
        "between them.",
    )
    kafka_group: str = Field(default="tally", min_length=1, description="The consumer group of all nodes on one store.")
    kafka_dead_letters: str = Field(
        default="tally.dead", pattern=TOPIC, description="The topic for records that cannot be counted."
    )
    kafka_options: str = Field(
        default="",
        repr=False,
        description="TLS and SASL as `name=value&…`: `security_protocol`, `sasl_mechanism`, `sasl_plain_username`, "
        "`sasl_plain_password`, `ssl_cafile`, `ssl_certfile`, `ssl_keyfile`.",
    )

    @property
    def store_kind(self) -> Literal["memory", "sqlite", "redis"]:
        scheme = self.store.partition(":")[0]
        return scheme if scheme in {"memory", "sqlite"} else "redis"  # type: ignore[return-value] # as STORES says

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _KeyFiles(settings_cls)
