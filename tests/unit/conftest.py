"""What unit tests share; and how Hypothesis runs: short, and without a deadline, because the machine may be busy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=50)
settings.load_profile("unit")


@pytest.fixture
def stopped() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of callers, that was stopped before the end of the round in which they have called."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
