"""Paced delivery: sends every commit at once while that is cheap, and only the latest counts when it is not.

The messages of a round are encoded once for all clients. A slow client is skipped, and gets the latest counts
when it can take more.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

from app.live.clients import AnyClient, Send, StreamClient
from app.live.day import Delta, LiveDay
from app.metrics import Metrics

CLIENTS_MAX = 10_000
# Fraction of one core that broadcasting may use, in CPU time of the sending thread. The same fraction of the process's
# idle time is added, so it is 0.16 to 0.32.
CPU_SHARE = 0.16
BUDGET_BURST_SECONDS = 0.05  # largest unused budget that is carried over, in CPU seconds
CLIENTS_AT_ONCE = 50  # clients to send to before hits are processed again
RETRY_SECONDS = 0.05  # between two tries to send to clients that could not take more
IDLE_SECONDS = 0.05  # between two rounds while no client is connected
SLOW_CLIENT_TIMEOUT_SECONDS = 25.0  # without taking a message, after all buffers are full

log = logging.getLogger("tally.live")


class TooManyConnections(Exception):
    """So many clients are connected, of all or of one kind."""

    def __init__(self, most: int = CLIENTS_MAX) -> None:
        super().__init__(f"connection limit reached: {most} per node; retry later")


class CpuBudget:
    """A token bucket of CPU seconds, which is refilled faster while the process is idle."""

    def __init__(self) -> None:
        self._refilled_at, self._process_seconds = time.monotonic(), time.process_time()
        self._seconds = BUDGET_BURST_SECONDS
        self._share = CPU_SHARE

    def refill(self) -> None:
        """Add the share of the time since the last call."""
        now, process_seconds = time.monotonic(), time.process_time()
        passed, used = now - self._refilled_at, process_seconds - self._process_seconds
        self._refilled_at, self._process_seconds = now, process_seconds
        self._share = CPU_SHARE * (1 + max(0.0, 1 - used / max(passed, 1e-6)))
        self._seconds = min(BUDGET_BURST_SECONDS, self._seconds + passed * self._share)

    def spend(self, seconds: float) -> float:
        """Take CPU seconds out, and return for how many seconds to sleep until they are refilled."""
        self._seconds -= seconds
        return max(0.0, -self._seconds / self._share)


class Broadcaster:
    """Sends the changes of a LiveDay to all clients.

    While sending exceeds its CPU budget, rounds are at least `interval_seconds` apart. `clients` maps ids to connected
    clients: the sid of a Socket.IO client, or the id of a stream.
    """

    def __init__(self, day: LiveDay, metrics: Metrics, interval_seconds: float) -> None:
        self._day, self._metrics, self._interval_seconds = day, metrics, interval_seconds
        self.clients: dict[str, AnyClient] = {}
        self._behind: set[str] = set()  # clients that lack messages even if there is nothing new
        self._sent_state = day.state
        self._first_client = asyncio.Event()
        self._round_began_at = time.monotonic()
        metrics.watch("tally_live_clients", "Connected live clients.", lambda: len(self.clients))

    def start(self) -> None:
        self._sender = asyncio.create_task(self._broadcast_loop())

    async def close(self) -> None:
        self._sender.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)

    def seconds_since_broadcast(self) -> float:
        """Return how long ago the last round began. It is about a second at most, unless something is wrong."""
        return time.monotonic() - self._round_began_at

    def add(self, client_id: str, client: AnyClient) -> None:
        """Send changes to this client from now on. Raises TooManyConnections."""
        if len(self.clients) >= CLIENTS_MAX:
            raise TooManyConnections
        if not self.clients:
            # No updates are sent while no client is connected, so the first one must not get the backlog.
            self._day.take_deltas()
            self._first_client.set()
        client.join(self._day)
        self.clients[client_id] = client
        self.wake(client_id)

    def remove(self, client_id: str) -> None:
        """Send nothing more to this client, if it is connected."""
        self.clients.pop(client_id, None)

    def wake(self, client_id: str) -> None:
        """Begin a round now, because this client needs a message."""
        self._behind.add(client_id)
        self._day.changed.set()

    @contextlib.contextmanager
    def stream(
        self, send: Send, ended: asyncio.Event, events: tuple[str, ...], last_event_id: str | None
    ) -> Iterator[StreamClient]:
        """Within this context, send Server-Sent Events to an ASGI `send`, of these events or of all.

        First come the changes since `last_event_id`, or without one the present counts of `events`. With None, no event
        has an id. `ended` is set when the stream has to end. Raises TooManyConnections.
        """
        client = StreamClient(send, ended, events, last_event_id)
        client_id = f"stream {id(client)}"
        self.add(client_id, client)
        try:
            yield client
        finally:
            self.remove(client_id)

    def end_streams(self) -> None:
        """End all streams, because the server shuts down."""
        for client in self.clients.values():
            if isinstance(client, StreamClient):
                client.ended.set()

    async def _broadcast_loop(self) -> None:
        budget, is_blocked = CpuBudget(), False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if is_blocked else 1.0):
                    await self._day.changed.wait()
            self._day.changed.clear()
            self._round_began_at = time.monotonic()
            budget.refill()
            try:
                spent, is_blocked = await self._broadcast_once()
            except Exception:  # the hits are stored, and later ones have to be shown
                log.exception("broadcasting failed and will be retried")
                self._behind.update(self.clients)
                spent, is_blocked = 1.0, True
            rest = budget.spend(spent)
            if rest:
                # Changes during the rest are merged into one delta.
                await asyncio.sleep(max(rest, self._interval_seconds))
            elif not self.clients:
                await self._wait_for_first_client()

    async def _wait_for_first_client(self) -> None:
        self._first_client.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_SECONDS):
                await self._first_client.wait()

    async def _broadcast_once(self) -> tuple[float, bool]:
        """Send the clients the messages that they lack.

        Return the CPU seconds used, and whether a client could not take all of them.
        """
        began = time.thread_time()
        deltas = self._day.take_deltas()
        has_news, behind = bool(deltas) or self._sent_state is not self._day.state, self._behind
        self._behind, self._sent_state = set(), self._day.state
        spent, sent, clients = time.thread_time() - began, 0, list(self.clients if has_news else behind)
        for i in range(0, len(clients), CLIENTS_AT_ONCE):
            began = time.thread_time()
            for client_id in clients[i : i + CLIENTS_AT_ONCE]:
                if client := self.clients.get(client_id):
                    sent += self._push(client_id, client, deltas)
                    if client.undelivered is not None:
                        self._behind.add(client_id)
                        await self._close_slow_client(client_id, client)
            spent += time.thread_time() - began
            await asyncio.sleep(0)
        self._metrics.sends.inc(sent)
        return spent, bool(self._behind)

    def _push(self, client_id: str, client: AnyClient, deltas: list[Delta]) -> int:
        """Send a client the messages that it lacks; return how many were sent. Remove it if it is closed."""
        try:
            return client.deliver(self._day, deltas)
        except (OSError, RuntimeError):
            log.debug("client %s has disconnected", client_id)
        except Exception:  # an error of one client must not affect the others
            log.exception("sending to a client failed; it is removed")
        self.remove(client_id)
        return 0

    async def _close_slow_client(self, client_id: str, client: AnyClient) -> None:
        if client.blocked_seconds >= SLOW_CLIENT_TIMEOUT_SECONDS:
            log.info("closed a client that read nothing for %g s", SLOW_CLIENT_TIMEOUT_SECONDS)
            self.remove(client_id)
            await client.close()
