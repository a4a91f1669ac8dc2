"""Fuzzers: random work and random faults, after which the store must agree with the responses to clients.

`make test` runs a few seeds of each fuzzer, and `make fuzz MINUTES=10` runs new ones. A failure prints how to repeat
its seed. The same seed plans the same work and faults, but real servers may do them in another order.
"""

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from secrets import randbits
from types import CoroutineType
from typing import Any

MINUTES = float(os.environ.get("TALLY_FUZZ_MINUTES") or 0)  # for each fuzzer
EPISODE_SECONDS = 150  # an episode takes a few seconds; a longer one waits for something that never happens
TEST_SECONDS = 60 * MINUTES + EPISODE_SECONDS + 60


def seeds(number: int) -> Iterator[int]:
    """Yield TALLY_FUZZ_SEED, or new seeds for TALLY_FUZZ_MINUTES, or always the same few."""
    if seed := os.environ.get("TALLY_FUZZ_SEED"):
        yield int(seed)
    elif MINUTES:
        end, used = time.monotonic() + 60 * MINUTES, 0
        while time.monotonic() < end:
            yield randbits(32)
            used += 1
        sys.stdout.write(f"{used} seeds ")
    else:
        yield from range(number)


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Add to an exception how to repeat the episode that raised it."""
    try:
        yield
    except BaseException as error:
        test = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
        error.add_note(f"repeat with: TALLY_FUZZ_SEED={seed} .venv/bin/python -m pytest '{test}'")
        raise


async def run_episodes(number: int, episode: Callable[[random.Random], Awaitable[None]]) -> None:
    """Run an episode for each seed. One that does not end fails, and prints where each of its tasks waits."""
    for seed in seeds(number):
        with repeatable(seed):
            task = asyncio.ensure_future(episode(random.Random(seed)))
            await asyncio.wait([task], timeout=EPISODE_SECONDS)
            if not task.done():
                for waiting in asyncio.all_tasks():
                    sys.stdout.write(f"{waiting.get_name()}\n" + "".join(map("    {}\n".format, waits_in(waiting))))
                task.cancel()  # without waiting for it, because it may ignore this
                raise AssertionError(f"the episode did not end within {EPISODE_SECONDS} s")
            assert not task.cancelled(), "the episode was cancelled by an error in a library"
            task.result()


def waits_in(task: asyncio.Task[object]) -> Iterator[str]:
    """Yield the place in each coroutine of a task, from the outermost one to the one that waits."""
    coroutine: Any = task.get_coro()
    while isinstance(coroutine, CoroutineType) and coroutine.cr_frame:
        yield f"{coroutine.cr_frame.f_code.co_filename}:{coroutine.cr_frame.f_lineno} in {coroutine.__qualname__}"
        coroutine = coroutine.cr_await
    yield f"{coroutine!r:.300}"
