"""Let each wait for the server last a moment longer at random, so that races come out: a plugin of pytest's.

Use it by `nox -s races`. What a task does while another waits is what nobody thought of.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg

SHARE = 0.2
"""Of the waits, before and after each, that are delayed."""
LONGEST = 0.04
"""Seconds; many more, and tests fail for want of time."""


def pytest_configure() -> None:
    """Have psycopg wait so."""
    psycopg.AsyncConnection.wait = _wait  # type: ignore[method-assign]


_psycopg_wait = psycopg.AsyncConnection.wait


async def _wait(connection: psycopg.AsyncConnection[Any], *arguments: Any, **parameters: Any) -> Any:
    await _perhaps_sleep()
    found = await _psycopg_wait(connection, *arguments, **parameters)
    await _perhaps_sleep()
    return found


async def _perhaps_sleep() -> None:
    if random.random() < SHARE:
        await asyncio.sleep(random.uniform(0, LONGEST))
