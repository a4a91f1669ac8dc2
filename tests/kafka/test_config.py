"""The TALLY_KAFKA_* settings: invalid ones, and a Kafka that requires TLS and a password."""

import pytest

from app.kafka.config import client_options, parse_topics
from app.settings import Settings
from app.stores.base import StoreOpenError
from tests.kafka.conftest import MakeSettings
from tests.kafka.waiting import wait_for_counts, wait_for_reason, wait_until_ready
from tests.support.kafka_broker import Broker
from tests.support.servers import serving


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"kafka": "k:1", "kafka_inputs": "l:1/orders"}, "INPUTS: all topics must have the same host:port list"),
        ({"kafka": "k:1", "kafka_topic": "a", "kafka_dead_letters": "a"}, "TOPIC and .* must differ"),
        ({"kafka_inputs": "k:1/a?event=e k:1/a"}, "INPUTS: 'a' is an invalid topic, or one that is used already"),
        ({"kafka_inputs": "k:1/tally.dead"}, "INPUTS: 'tally.dead' is an invalid topic"),
        ({"kafka_inputs": "k:1/a/b"}, "INPUTS: 'a/b' is an invalid topic"),
        ({"kafka_inputs": "k:1/a?user=u"}, "INPUTS: a: .*`event`"),
        ({"kafka_inputs": "k:1/a?event=e&name=n"}, "INPUTS: a: .*`name`"),
        ({"kafka_inputs": "k:1/a?event"}, "INPUTS: a: "),
        ({"kafka": "k:1", "kafka_options": "acks=0"}, "OPTIONS: acks is not one of"),
        ({"kafka": "k:1", "kafka_options": "security_protocol=TLS"}, "OPTIONS: security_protocol must be one of"),
        ({"kafka": "k:1", "kafka_options": "security_protocol=SASL_SSL"}, "OPTIONS: .* and a sasl_plain_username"),
        ({"kafka": "k:1", "kafka_options": "security_protocol=SSL&ssl_cafile=/none"}, "OPTIONS: cannot use a file"),
    ],
)
def test_an_invalid_setting_is_rejected_with_its_name(chosen: dict[str, str], message: str) -> None:
    settings = Settings(TALLY_STORE="memory://", **chosen)
    with pytest.raises(StoreOpenError, match=f"TALLY_KAFKA_{message}"):
        client_options(settings, parse_topics(settings)[0])


async def test_a_kafka_with_tls_and_a_password_is_used_and_a_wrong_password_is_reported(
    make_settings: MakeSettings, broker: Broker, names: dict[str, str]
) -> None:
    await broker.create_topics(names["kafka_topic"])
    settings = make_settings("memory", kafka=broker.secure_servers, kafka_options=broker.secure_options)
    assert "password" not in repr(settings)
    async with serving(settings) as node, node.client() as client:
        await wait_until_ready(client)
        assert (await client.post("/event/a")).status_code == 202
        await wait_for_counts(client, a=1)
    options = broker.secure_options.replace("password=", "password=x")
    async with serving(settings.model_copy(update={"kafka_options": options})) as node, node.client() as client:
        await wait_for_reason(client, "Kafka cannot be read")
        assert (await client.post("/event/a")).status_code == 503
