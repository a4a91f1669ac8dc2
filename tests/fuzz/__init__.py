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

EPISODE_SECONDS = (
    50.0  # an episode takes a few seconds, so one that takes longer waits for something that never happens
)


def seeds(number: int) -> Iterator[int]:
    """Yield TALLY_FUZZ_SEED, or new seeds for TALLY_FUZZ_MINUTES, or always the same few."""
    if seed := os.environ.get("TALLY_FUZZ_SEED"):
        yield int(seed)
    elif minutes := os.environ.get("TALLY_FUZZ_MINUTES"):
        end, used = time.monotonic() + 60 * float(minutes), 0
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
                    waiting.print_stack(file=sys.stdout)
                task.cancel()  # without waiting for it, because it may ignore this
                raise AssertionError(f"the episode did not end within {EPISODE_SECONDS:g} s")
            assert not task.cancelled(), "the episode was cancelled by an error in a library"
            task.result()
