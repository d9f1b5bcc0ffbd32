"""Waiting for what no event tells: the state of a server or of another process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds until a wait fails: far more than anything takes, so that a busy machine does not fail a test."""

_PAUSE = 0.01


def eventually(look: Callable[[], T], *, within: float = PATIENCE) -> T:
    """Call `look` until it returns something true, and return that.

    Args:
        look: reads a state outside this process, such as pg_stat_activity.
        within: seconds.

    Raises:
        AssertionError: the time is over; it tells what was seen last.
    """
    end = time.monotonic() + within
    while not (seen := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s; seen last: {seen!r}")
        time.sleep(_PAUSE)
    return seen


async def eventually_async(look: Callable[[], Awaitable[T]], *, within: float = PATIENCE) -> T:
    """Await `look()` until it returns something true, and return that; as `eventually` does.

    Raises:
        AssertionError: the time is over; it tells what was seen last.
    """
    end = time.monotonic() + within
    while not (seen := await look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s; seen last: {seen!r}")
        await asyncio.sleep(_PAUSE)
    return seen


async def let_pass(seconds: float) -> None:
    """Let time pass: only for tests about time itself, such as expiry, where nothing happens that could be awaited."""
    await asyncio.sleep(seconds)
