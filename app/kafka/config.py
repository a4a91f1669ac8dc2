"""The TALLY_KAFKA_* settings: which servers and topics to use, and with which TLS and SASL options."""

import re
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from aiokafka.helpers import create_ssl_context

from app.kafka.decoding import DEFAULT_MAPPING, Decoder, FieldMapping, decode_buffered, mapped_decoder
from app.settings import SERVERS, TOPIC, Settings
from app.stores.base import StoreOpenError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TLS_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
OPTIONS = ("security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password", *TLS_FILES)
METADATA_MAX_AGE_MS = 30_000  # new partitions are found within this time


def parse_topics(settings: Settings) -> tuple[str, dict[str, Decoder]]:
    """Return Kafka's servers, and the decoder of each topic that is counted. Raises StoreOpenError."""
    servers = settings.kafka
    decoders: dict[str, Decoder] = {settings.kafka_topic: decode_buffered} if servers else {}
    if settings.kafka_dead_letters in decoders:
        raise StoreOpenError("TALLY_KAFKA_TOPIC and TALLY_KAFKA_DEAD_LETTERS must differ")
    for url in settings.kafka_inputs.split():
        location, _, query = url.partition("?")
        host, _, topic = location.partition("/")
        servers = servers or host
        if host != servers or not re.fullmatch(SERVERS, host):
            raise StoreOpenError("TALLY_KAFKA_INPUTS: all topics must have the same host:port list as TALLY_KAFKA")
        if not re.fullmatch(TOPIC, topic) or topic in {*decoders, settings.kafka_dead_letters}:
            raise StoreOpenError(f"TALLY_KAFKA_INPUTS: {topic!r} is an invalid topic, or one that is used already")
        try:
            fields = dict(parse_qsl(query, strict_parsing=True)) if query else DEFAULT_MAPPING
            decoders[topic] = mapped_decoder(msgspec.convert(fields, FieldMapping))
        except (ValueError, msgspec.ValidationError) as error:
            raise StoreOpenError(f"TALLY_KAFKA_INPUTS: {topic}: {error}") from None
    return servers, decoders


def client_options(settings: Settings, servers: str) -> dict[str, Any]:
    """Return the arguments that every aiokafka client is created with. Raises StoreOpenError."""
    options: dict[str, Any] = dict(parse_qsl(settings.kafka_options))
    if unknown := options.keys() - OPTIONS:
        raise StoreOpenError(f"TALLY_KAFKA_OPTIONS: {unknown.pop()} is not one of {', '.join(OPTIONS)}")
    protocol, mechanism = options.get("security_protocol", "PLAINTEXT"), options.get("sasl_mechanism", "PLAIN")
    user_missing = protocol.startswith("SASL_") and not options.get("sasl_plain_username")
    if protocol not in PROTOCOLS or mechanism not in MECHANISMS or user_missing:
        raise StoreOpenError(
            f"TALLY_KAFKA_OPTIONS: security_protocol must be one of {', '.join(PROTOCOLS)}; SASL needs a"
            f" sasl_mechanism of {', '.join(MECHANISMS)} and a sasl_plain_username"
        )
    files = {name.removeprefix("ssl_"): options.pop(name, None) for name in TLS_FILES}
    try:
        context = create_ssl_context(**files) if protocol.endswith("SSL") else None
    except OSError as error:
        raise StoreOpenError(f"TALLY_KAFKA_OPTIONS: cannot use a file of {', '.join(TLS_FILES)}: {error}") from None
    return {
        "bootstrap_servers": servers,
        "client_id": "tally",
        "ssl_context": context,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        **options,
    }
