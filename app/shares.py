"""Shares: links to the counts of chosen events that need no API key, as records of the store.

Each node keeps all shares in memory, so that anonymous requests with invented tokens never reach the store.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from app.domain.calendar import Clock
from app.live.broadcaster import CLIENTS_MAX, TooManyConnections
from app.stores.base import CounterStore, StoreUnavailable
from app.stores.records import RecordChange

SHARES_MAX = 100
STREAMS_MAX = CLIENTS_MAX // 2  # of all shares on a node, so that readers of links leave room for dashboards
TOKEN_BYTES = 18  # 144 bits

_SHARES = "shares"  # the collection


class TooManyShares(Exception):
    """There are SHARES_MAX shares. Nothing was added."""


class Share(msgspec.Struct, frozen=True):
    """A share as it is stored. `id` is the hash of its token, which is not stored. `created` is a UTC second."""

    id: str
    title: str
    events: tuple[str, ...]
    created: int


class NewShare(NamedTuple):
    """A share that was added, and its token, which cannot be read again."""

    share: Share
    token: str


class Shares:
    """The shares of a store, and their open streams on this node. All coroutines but `start` raise StoreUnavailable."""

    def __init__(self, store: CounterStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._texts: Mapping[str, str] | None = None  # the records by id, once they were read
        self._shares: dict[str, Share] = {}
        self._streams: dict[asyncio.Event, str] = {}  # the id of the share by the `ended` of its stream
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Read the shares. If the store is unreachable, a later refresh does."""
        with contextlib.suppress(StoreUnavailable):
            await self.refresh()

    async def refresh(self) -> None:
        """Notice the changes of other nodes, and end the streams of revoked shares. It runs every few seconds.

        It does nothing while the store is unreachable, so links continue to work.
        """
        if self._store.stale_seconds() is None:
            async with self._changing:
                await self._read()

    async def list_all(self) -> list[Share]:
        """Return all shares, oldest first."""
        async with self._changing:
            await self._read()
        return sorted(self._shares.values(), key=lambda share: (share.created, share.id))

    async def add(self, title: str, events: tuple[str, ...]) -> NewShare:
        """Add a share of these events. Raises TooManyShares."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        share = Share(_id_of(token), title, events, int(self._clock.at()))
        async with self._changing:
            if await self._store.records.size(_SHARES) >= SHARES_MAX:  # several nodes may exceed it by a few
                raise TooManyShares
            await self._store.records.change(
                [RecordChange(_SHARES, share.id, None, msgspec.json.encode(share).decode())]
            )
            await self._read()
        return NewShare(share, token)

    async def revoke(self, share_id: str) -> Share | None:
        """Delete a share and return it, or None if there is none. Its streams end."""
        async with self._changing:
            await self._read()
            share, text = self._shares.get(share_id), (self._texts or {}).get(share_id)
            if share and await self._store.records.change([RecordChange(_SHARES, share_id, text, None)]):
                await self._read()
                return share
        return None

    def find(self, token: str) -> Share | None:
        """Return the share with this token, or None. Raises StoreUnavailable if the shares were never read."""
        if self._texts is None:
            raise StoreUnavailable("the store has been unreachable since this node started; retry later")
        return self._shares.get(_id_of(token))

    @contextlib.contextmanager
    def stream(self, share: Share, ended: asyncio.Event) -> Iterator[None]:
        """Within this context, set `ended` when the share is revoked. Raises TooManyConnections."""
        if len(self._streams) >= STREAMS_MAX:
            raise TooManyConnections(STREAMS_MAX)
        self._streams[ended] = share.id
        self._end_revoked()
        try:
            yield
        finally:
            del self._streams[ended]

    async def _read(self) -> None:
        texts = await self._store.records.read(_SHARES)
        if texts != self._texts:
            self._shares = {id_: msgspec.json.decode(text, type=Share) for id_, text in texts.items()}
            self._texts = texts
            self._end_revoked()

    def _end_revoked(self) -> None:
        for ended, share_id in self._streams.items():
            if share_id not in self._shares:
                ended.set()


def _id_of(token: str) -> str:
    """Return the hash of a token. A lookup by it takes no longer for a token that is nearly right."""
    return blake2b(token.encode(errors="replace"), digest_size=16).hexdigest()
