"""A real Apache Kafka: one broker in KRaft mode on loopback ports, to kill and start again.

Its jars come by Maven, once, into TALLY_KAFKA_HOME (~/.cache/tally-kafka), each checked against kafka.sha256.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from tests.support.redis_servers import certificate, free_port, wait_until

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it says at each try that the broker is not there
VERSION = "4.1.2"
HOME = Path(os.environ.get("TALLY_KAFKA_HOME", "~/.cache/tally-kafka")).expanduser() / VERSION
SUMS = Path(__file__).parent / "kafka.sha256"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
POM = f"""<project><modelVersion>4.0.0</modelVersion>
<groupId>tally</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
<dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{VERSION}</version></dependency></dependencies></project>"""
JAAS = "org.apache.kafka.common.security.plain.PlainLoginModule"
# small, and quick to start rather than quick in the long run
JAVA = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]


def jars() -> Path:
    """The directory of Kafka's jars; where they cannot be had, the test that asks is skipped."""
    sums = [line.split() for line in SUMS.read_text().splitlines()]
    for command in ("java",) if HOME.exists() else ("java", "mvn"):
        if not shutil.which(command):
            pytest.skip(f"Kafka needs {command}, which is not installed")
    if not HOME.exists():
        fetched = HOME.with_name(f"{VERSION}.{os.getpid()}")  # which no other process sees before it is whole
        fetched.mkdir(parents=True)
        (fetched / "pom.xml").write_text(POM)
        command = ["mvn", "-q", "-B", "-f", str(fetched / "pom.xml"), COPY]
        options = ["-DincludeScope=runtime", f"-DoutputDirectory={fetched}"]
        ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if ended.returncode:
            shutil.rmtree(fetched)
            pytest.skip(f"Kafka cannot be fetched: {ended.stdout.strip().splitlines()[:1]}")
        with contextlib.suppress(OSError):  # another process was quicker
            fetched.rename(HOME)
    for digest, name in sums:
        assert hashlib.sha256((HOME / name).read_bytes()).hexdigest() == digest, f"{name} is not what it was"
    return HOME


class Broker:
    """Kafka with everything it keeps in one directory. It listens twice: to all, and with TLS to whom it knows."""

    def __init__(self, directory: Path) -> None:
        controller, guarded = free_port(), f"127.0.0.1:{free_port()}"
        self.servers, self.guarded = f"127.0.0.1:{free_port()}", guarded
        self.authority, key = certificate(directory)
        password = secrets.token_hex(8)
        self.options = "security_protocol=SASL_SSL&sasl_mechanism=PLAIN&sasl_plain_username=tally"
        self.options += f"&sasl_plain_password={password}&ssl_cafile={self.authority}"
        both = directory / "server.pem"
        both.write_text(key.read_text() + self.authority.read_text())
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory
        self._log = directory / "kafka.log"
        self._properties = directory / "server.properties"
        self._classes = f"{jars()}/*"
        chosen = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.servers},GUARDED://{guarded},CONTROLLER://127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,GUARDED:SASL_SSL,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.name.guarded.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.guarded.plain.sasl.jaas.config": f'{JAAS} required user_tally="{password}";',
            "listener.name.guarded.ssl.keystore.type": "PEM",
            "listener.name.guarded.ssl.keystore.location": both,
            "log.dirs": directory / "data",
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))

    def start(self) -> "Broker":
        if not (self._directory / "data").exists():
            self._run("kafka.tools.StorageTool", "format", "-t", "dGFsbHktdGFsbHktdGFsbA", "-c").wait()
        self.process = self._run("kafka.Kafka")
        wait_until(lambda: asyncio.run(self._answers()), self._log.read_text, seconds=60)
        return self

    def kill(self) -> None:
        """As kill -9 does."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def create(self, *topics: str, partitions: int = 4, **configs: str) -> None:
        chosen = {"max.message.bytes": "8388608"} | {name.replace("_", "."): text for name, text in configs.items()}
        async with self._admin() as admin:
            answer = await admin.create_topics([NewTopic(t, partitions, 1, topic_configs=chosen) for t in topics])
        assert not any(error for _, error, *_ in answer.topic_errors), answer

    async def delete(self, topic: str) -> None:
        async with self._admin() as admin:
            await admin.delete_topics([topic])

    async def drop(self, topic: str, before: int) -> None:
        """As retention does: forget the records of every partition before this offset, where it has as many."""
        async with self._admin() as admin:
            for partition in range(4):
                with contextlib.suppress(OffsetOutOfRangeError):
                    await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})

    @contextlib.asynccontextmanager
    async def _admin(self, **options: int) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers, **options)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    async def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"Kafka ended: {self._log.read_text()}"
        with contextlib.suppress(KafkaError):
            async with self._admin(request_timeout_ms=2000) as admin:
                return await admin.list_topics() is not None
        return False

    def _run(self, *command: str) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            line = [*JAVA, self._classes, *command, str(self._properties)]
            return subprocess.Popen(line, cwd=self._directory, stdout=log, stderr=log)
