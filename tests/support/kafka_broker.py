"""A real Apache Kafka: one broker in KRaft mode on loopback ports, which a test can pause, kill and start again.

Maven downloads its jars once, into TALLY_KAFKA_HOME (~/.cache/tally-kafka). Each is checked against kafka.sha256.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from tests.support.redis_servers import certificate, free_port, wait_until

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it logs every failed attempt to connect
VERSION = "4.1.2"
HOME = Path(os.environ.get("TALLY_KAFKA_HOME", "~/.cache/tally-kafka")).expanduser() / VERSION
CHECKSUMS = Path(__file__).parent / "kafka.sha256"
COPY_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
POM = f"""<project><modelVersion>4.0.0</modelVersion>
<groupId>tally</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
<dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{VERSION}</version></dependency></dependencies></project>"""
LOGIN_MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
# Options for a small heap and a quick start, at the expense of long-term speed.
JAVA = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]
PARTITIONS = 4


def jars() -> Path:
    """Return the directory of Kafka's jars. Skips the test if they cannot be downloaded."""
    for command in ("java",) if HOME.exists() else ("java", "mvn"):
        if not shutil.which(command):
            pytest.skip(f"Kafka needs {command}, which is not installed")
    if not HOME.exists():
        _download()
    for line in CHECKSUMS.read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((HOME / name).read_bytes()).hexdigest() == digest, f"{name} does not match its checksum"
    return HOME


def _download() -> None:
    # The rename makes the directory visible to other processes only when it is complete.
    incomplete = HOME.with_name(f"{VERSION}.{os.getpid()}")
    incomplete.mkdir(parents=True)
    (incomplete / "pom.xml").write_text(POM)
    command = ["mvn", "-q", "-B", "-f", str(incomplete / "pom.xml"), COPY_GOAL]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={incomplete}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(incomplete)
        pytest.skip(f"Kafka cannot be downloaded: {done.stdout.strip().splitlines()[:1]}")
    with contextlib.suppress(OSError):  # another process was faster
        incomplete.rename(HOME)


class Broker:
    """A Kafka broker with all its data in one directory, on a plain port and on one with TLS and a password.

    `data` is the directory of its logs, which a test may replace while it is stopped.
    """

    def __init__(self, directory: Path) -> None:
        self.servers, self.secure_servers = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        authority, key = certificate(directory)
        password = secrets.token_hex(8)
        self.secure_options = "security_protocol=SASL_SSL&sasl_mechanism=PLAIN&sasl_plain_username=tally"
        self.secure_options += f"&sasl_plain_password={password}&ssl_cafile={authority}"
        self._process: subprocess.Popen[bytes] | None = None
        self.data = directory / "data"
        self._directory = directory
        self._log = directory / "kafka.log"
        self._properties = directory / "server.properties"
        self._classes = f"{jars()}/*"
        keystore = directory / "server.pem"
        keystore.write_text(key.read_text() + authority.read_text())
        self._write_properties(password, keystore)

    def _write_properties(self, password: str, keystore: Path) -> None:
        controller = f"127.0.0.1:{free_port()}"
        properties = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.servers},SECURE://{self.secure_servers},CONTROLLER://{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.name.secure.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secure.plain.sasl.jaas.config": f'{LOGIN_MODULE} required user_tally="{password}";',
            "listener.name.secure.ssl.keystore.type": "PEM",
            "listener.name.secure.ssl.keystore.location": keystore,
            "log.dirs": self.data,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def start(self) -> "Broker":
        """Start the broker, with the data of earlier runs, and wait until it responds."""
        if not self.data.exists():
            self._run("kafka.tools.StorageTool", "format", "-t", "dGFsbHktdGFsbHktdGFsbA", "-c").wait()
        self._process = self._run("kafka.Kafka")
        wait_until(lambda: asyncio.run(self._is_ready()), self._log.read_text, seconds=60)
        return self

    def kill(self) -> None:
        """End the broker like kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the broker, with all records on disk."""
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the broker from responding, with its connections open."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def create_topics(self, *topics: str, partitions: int = PARTITIONS, **configs: str) -> None:
        """Create topics; `configs` are their settings, with underscores for dots."""
        chosen = {"max.message.bytes": "8388608"} | {name.replace("_", "."): text for name, text in configs.items()}
        async with self._admin() as admin:
            response = await admin.create_topics([NewTopic(t, partitions, 1, topic_configs=chosen) for t in topics])
        assert not any(error for _, error, *_ in response.topic_errors), response

    async def delete_topic(self, topic: str) -> None:
        """Delete a topic with all its records."""
        async with self._admin() as admin:
            await admin.delete_topics([topic])

    async def delete_records(self, topic: str, before: int) -> None:
        """Delete the records before this offset, like retention, in each partition that has as many."""
        async with self._admin() as admin:
            for partition in range(PARTITIONS):
                with contextlib.suppress(OffsetOutOfRangeError):
                    await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})

    async def produce(self, topic: str, *values: object, key: bytes | None = None) -> None:
        """Write records; a value that is not bytes is written as JSON."""
        async with AIOKafkaProducer(bootstrap_servers=self.servers) as producer:
            raw = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
            await asyncio.gather(*[await producer.send(topic, value, key=key) for value in raw])

    async def produce_in_transaction(self, topic: str, value: object) -> None:
        """Write a record to each partition, in one transaction. Its end adds a marker to each partition."""
        options = {"bootstrap_servers": self.servers, "transactional_id": secrets.token_hex(8)}
        async with AIOKafkaProducer(**options) as producer, producer.transaction():
            for partition in range(PARTITIONS):
                await producer.send(topic, json.dumps(value).encode(), partition=partition)

    async def read(self, topic: str, number: int) -> list[tuple[bytes, dict[str, bytes]]]:
        """Return the values and headers of the first records of a topic, as soon as there are so many."""
        async with AIOKafkaConsumer(topic, bootstrap_servers=self.servers, auto_offset_reset="earliest") as consumer:
            records = [await asyncio.wait_for(consumer.getone(), 20) for _ in range(number)]
        return [(record.value, dict(record.headers)) for record in records]

    @contextlib.asynccontextmanager
    async def _admin(self, **options: int) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers, **options)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    async def _is_ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"Kafka ended: {self._log.read_text()}"
        with contextlib.suppress(KafkaError):
            async with self._admin(request_timeout_ms=2000) as admin:
                return await admin.list_topics() is not None
        return False

    def _run(self, *command: str) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            line = [*JAVA, self._classes, *command, str(self._properties)]
            return subprocess.Popen(line, cwd=self._directory, stdout=log, stderr=log)
