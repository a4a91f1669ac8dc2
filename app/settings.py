"""All settings: read once from environment variables with the prefix TALLY_, then frozen."""

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from limits import parse_many
from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

STORES = r"^(sqlite:///.|memory://$|rediss?(\+sentinel|\+cluster)?://.|unix://.)"
_PORT = "(?:[1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d{2}|655[0-2]\\d|6553[0-5])"
SERVERS = rf"^([^\s,/?]+:{_PORT}(,[^\s,/?]+:{_PORT})*)?$"
TOPIC = r"^[A-Za-z0-9._-]{1,249}$"

ROOT_PATH = r"^(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"  # nothing that has to be percent-encoded, and no "." or ".."

DEFAULT_PORT = 8000

Rate = Annotated[str, AfterValidator(lambda notation: parse_many(notation) and notation)]


def _list_of(pattern: str, expected: str) -> BeforeValidator:
    """Return a validator that splits a comma-separated text into items that match `pattern`.

    The error is `expected` and never contains the text, which may be a secret.
    """

    def split(value: str | Iterable[str]) -> list[str]:
        items = re.findall(r"[^,\s]+", value) if isinstance(value, str) else list(value)
        if not all(re.fullmatch(pattern, item) for item in items):
            raise ValueError(expected)
        return items

    return BeforeValidator(split)


def _proxies(value: str | Iterable[str]) -> list[str]:
    """Split a list of addresses and networks, and check each of them: uvicorn would ignore what it cannot use."""
    items = re.findall(r"[^,\s]+", value) if isinstance(value, str) else list(value)
    for item in items:
        try:
            ipaddress.ip_network(item)
        except ValueError:
            raise ValueError("each proxy must be an IP address, or a network like 10.0.0.0/8") from None
    return items


def _port_unless_service_link(value: object) -> object:
    """Ignore the TALLY_PORT that Kubernetes sets for a Service with the name `tally`, like tcp://10.0.0.1:8000."""
    return DEFAULT_PORT if isinstance(value, str) and value.startswith("tcp://") else value


_WEB_ORIGIN = rf"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:{_PORT})?"
_APP_ORIGIN = r"(?!https?:)[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+"  # of a browser extension, Capacitor or Tauri
Keys = Annotated[
    tuple[SecretStr, ...],
    NoDecode,
    _list_of(r"[!-~]{16,256}", "each key must be 16 to 256 visible ASCII characters without commas"),
]
Origins = Annotated[
    tuple[str, ...],
    NoDecode,
    _list_of(
        rf"{_WEB_ORIGIN}|{_APP_ORIGIN}|\*",
        "each origin must be like https://example.com or app://name, in lower case and without a path, or be *",
    ),
]
Hosts = Annotated[
    tuple[str, ...],
    NoDecode,
    _list_of(r"[a-z0-9._-]+|\*", "each host must be a name in lower case without a port, or be *"),
]


Proxies = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_proxies)]


class _KeyFiles(EnvSettingsSource):
    """Reads API keys from the files that TALLY_..._KEYS_FILE name, so that no key has to be in the environment."""

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
        if not text:
            # No key would mean that the role is open to everybody.
            raise SettingsError(f"{variable}_FILE: there is no key in {path}")
        return text


class Settings(BaseSettings):
    """The settings, by field name; the environment variable is the name in upper case after TALLY_."""

    model_config = SettingsConfigDict(
        env_prefix="TALLY_",
        frozen=True,
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on; `0.0.0.0` for all interfaces.")
    port: Annotated[int, BeforeValidator(_port_unless_service_link)] = Field(
        default=DEFAULT_PORT, ge=1, le=65535, description="Port to listen on."
    )
    root_path: str = Field(
        default="", pattern=ROOT_PATH, description="Path under which a proxy serves Tally, e.g. `/tally`."
    )
    store: str = Field(
        default="sqlite:///data/tally.db",
        pattern=STORES,
        validation_alias=AliasChoices("TALLY_STORE", "REDIS_URL"),
        description="Where counts are stored: `sqlite:///path`, `memory://`, or `redis://host:port/db` (also "
        "`rediss://`, `unix://path`, `redis+sentinel://`, `redis+cluster://`). Falls back to "
        "`REDIS_URL`.",
    )
    timezone: ZoneInfo = Field(
        default=ZoneInfo("UTC"),
        description="Time zone that defines when a day ends, e.g. `Europe/Berlin`. A store keeps its zone; see "
        "`tally rezone`.",
    )
    write_limit: Rate = Field(
        default="1000/second",
        description="Maximum rate of hits per client address, e.g. `1000/second`. A batch costs less: see "
        "`POST /events`.",
    )
    read_limit: Rate = Field(
        default="200/second", description="Maximum rate of reads per client address, e.g. `200/second`."
    )
    events_max: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="Maximum number of event names. New names beyond it get a 429.",
    )
    keys_max: int = Field(
        default=1_000_000,
        ge=10,
        le=100_000_000,
        description="Maximum number of idempotency keys in 24 hours; a tenth of them per client. New keys beyond it "
        "get a 503.",
    )
    public_by_max: int = Field(
        default=1_000_000, ge=1, le=1_000_000, description="Largest `by` that a client may send without a write key."
    )
    admin_keys: Keys = Field(
        default=(),
        description="API keys with the admin role, which includes write and read. If empty, admin routes are disabled.",
    )
    write_keys: Keys = Field(default=(), description="API keys with the write role. If empty, anyone can count.")
    read_keys: Keys = Field(default=(), description="API keys with the read role. If empty, anyone can read.")
    allowed_origins: Origins = Field(
        default=(), description="Web origins whose pages may count and read, besides Tally's own. `*` allows any."
    )
    allowed_hosts: Hosts = Field(
        default=(),
        description="Host names that Tally answers to, besides IP addresses and names without a dot. `*` allows any; "
        "it is the default if `TALLY_HOST` is not a loopback address.",
    )
    public_badges: bool = Field(default=False, description="Serve badges without an API key.")
    embed_origins: Origins = Field(
        default=(), description="Web origins whose pages may embed counters, without an API key. `*` allows any."
    )
    live_interval_ms: int = Field(
        default=10, ge=0, le=10_000, description="Minimum interval between two live updates to a client under load."
    )
    minutes_kept_hours: int = Field(default=48, ge=24, le=8760, description="Retention of counts per minute.")
    hours_kept_days: int = Field(default=90, ge=1, le=3660, description="Retention of counts per hour.")
    days_kept: int = Field(
        default=400, ge=8, le=36_600, description="Retention of counts per day. Totals never expire."
    )
    trusted_proxies: Proxies = Field(
        default=(), description="Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` headers are trusted."
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="How long an idle connection is kept. It must be longer than a proxy keeps one.",
    )
    countapi: bool = Field(
        default=False, description="Enable the routes of CountAPI and Abacus, such as `/hit` and `/get`."
    )
    alerts_allow_private: bool = Field(
        default=False, description="Let alerts be sent to private addresses and to this machine."
    )
    backup_every: int = Field(
        default=0,
        ge=0,
        le=8760,
        description="Interval between two backups of a SQLite store into the folder `backups` next to its file, in "
        "hours. 0 makes none.",
    )
    backup_keep: int = Field(default=7, ge=1, le=1000, description="Number of these backups that are kept.")
    spool: str = Field(
        default="data/spool", description="Directory of the spool, which keeps hits while Redis is unreachable."
    )
    spool_max_mb: int = Field(
        default=512, ge=1, le=1_000_000, description="Maximum size of the spool. Hits beyond it get a 503."
    )

    kafka: str = Field(
        default="",
        pattern=SERVERS,
        description="Kafka bootstrap servers, e.g. `host:port`. If set, hits are buffered in `TALLY_KAFKA_TOPIC` and "
        "acknowledged with 202.",
    )
    kafka_topic: str = Field(
        default="tally.events", pattern=TOPIC, description="Topic that buffers hits until they are counted."
    )
    kafka_inputs: str = Field(default="", description="Existing topics to count.")
    kafka_group: str = Field(default="tally", min_length=1, description="Consumer group of all nodes on one store.")
    kafka_dead_letters: str = Field(
        default="tally.dead", pattern=TOPIC, description="Topic for records that cannot be counted."
    )
    kafka_options: str = Field(default="", repr=False, description="TLS and SASL options.")

    @field_validator("backup_every")
    @classmethod
    def _has_a_file(cls, hours: int, others: ValidationInfo) -> int:
        if hours and not others.data.get("store", "sqlite:").startswith("sqlite:"):
            raise ValueError("only a SQLite store has a file; for others see docs/how-to/backup.md")
        return hours

    @property
    def store_kind(self) -> Literal["memory", "sqlite", "redis"]:
        """The kind of store that TALLY_STORE names."""
        scheme = self.store.partition(":")[0]
        return scheme if scheme in {"memory", "sqlite"} else "redis"  # type: ignore[return-value] # the pattern STORES allows no other scheme

    @property
    def sqlite_file(self) -> Path:
        """The file that TALLY_STORE names, if it is a SQLite store."""
        return Path(self.store.removeprefix("sqlite:///"))

    @property
    def host_to_open(self) -> str:
        """The host of a URL that opens on this machine."""
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(self.host).is_unspecified:  # all interfaces
                return "localhost"
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
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


def invalid_settings(error: ValidationError) -> list[tuple[str, str]]:
    """Return the variable of each invalid setting, with the reason and the setting's description."""
    found = []
    for problem in error.errors():
        name = str(problem["loc"][0]).removeprefix("TALLY_").lower()
        # A pattern is hard to read. The description has an example.
        has_pattern = problem["type"] == "string_pattern_mismatch"
        reason = "invalid value" if has_pattern else problem["msg"].removeprefix("Value error, ")
        found.append((f"TALLY_{name.upper()}", f"{reason}. {Settings.model_fields[name].description}"))
    return found
