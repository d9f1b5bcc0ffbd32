"""What is told of an outage, to whom, and how often."""

from __future__ import annotations

import asyncio
import logging
import time

import psycopg
import pytest

from channels_pg_sa import ConfigurationError, LayerClosed
from channels_pg_sa.receiving.clock import Clock
from channels_pg_sa.receiving.dispatcher import Dispatcher
from channels_pg_sa.receiving.inbox import Inbox
from channels_pg_sa.receiving.listener import ConnectionLost
from channels_pg_sa.receiving.outages import Announcements, Outages

CHANNEL = "s.0123456789ab!a"


@pytest.fixture
def dispatcher() -> Dispatcher:
    """One with a member."""
    dispatcher = Dispatcher(lambda _: None, bounded=False)
    dispatcher.members.join("g", CHANNEL, float("inf"))
    return dispatcher


@pytest.fixture
def clock() -> Clock:
    """One that shows the time."""
    clock = Clock()
    clock.observe(time.monotonic(), time.monotonic(), time.time())
    return clock


@pytest.fixture
def inbox(dispatcher: Dispatcher, clock: Clock) -> Inbox:
    """Its inbox."""
    return Inbox(dispatcher, clock, work=lambda _: None, want=lambda _: None)


@pytest.fixture
async def outages(inbox: Inbox, clock: Clock) -> Outages:
    """Those of its node, which announces both ends."""
    loop = asyncio.get_running_loop()
    return Outages("a", inbox, clock, expiry=60.0, announcements=Announcements(b"lost", b"back"), loop=loop)


async def test_a_way_of_its_own_is_named(inbox: Inbox, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Sends go on meanwhile, by another, so nobody would look for the fault there."""
    loop = asyncio.get_running_loop()
    outages = Outages("a", inbox, clock, expiry=60.0, announcements=Announcements(), loop=loop, key="listen_url")
    outages.begin(OSError("refused"))
    assert outages.trouble == '"listen_url": refused'
    assert '"listen_url": refused' in caplog.text
    outages.begin(ConfigurationError('"listen_url" leads elsewhere'))
    assert outages.trouble == '"listen_url" leads elsewhere'


@pytest.mark.parametrize(
    "error", [psycopg.OperationalError("gone"), OSError("gone"), ConnectionLost("gone"), ConfigurationError("wrong")]
)
async def test_what_may_be_expected_is_told_in_a_line(
    outages: Outages, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Its traceback would tell nothing."""
    outages.begin(error)
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)


async def test_what_nobody_expects_is_told_with_its_traceback(
    outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    """As what a callable PASSWORD raises."""
    error = RuntimeError("no token")
    outages.begin(error)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_each_end_of_an_outage_is_announced_once(outages: Outages, inbox: Inbox) -> None:
    """However many attempts fail, and again at the next outage; not when the very first attempt did it."""
    outages.end()
    for _ in range(2):
        for reason in "ab":
            outages.begin(OSError(reason))
        outages.end()
    entries = [inbox.take(CHANNEL) for _ in range(5)]
    assert [entry and entry.payload for entry in entries] == [b"lost", b"back"] * 2 + [None]


async def test_each_reason_is_told_once_in_an_outage(outages: Outages, caplog: pytest.LogCaptureFixture) -> None:
    """And again in the next."""
    for _ in range(2):
        for reason in "abab":
            outages.begin(OSError(reason))
            assert outages.trouble == reason
        outages.end()
        assert outages.trouble is None
    told = [record.getMessage().rpartition(": ")[2] for record in caplog.records if "reconnects" in record.getMessage()]
    assert told == ["a", "b"] * 2


@pytest.mark.parametrize("is_heard", [False, True])
async def test_what_was_wrong_and_was_mended_is_no_reason_any_more(
    outages: Outages, inbox: Inbox, is_heard: bool
) -> None:
    """Readers outlast an outage that comes after it, too."""
    outages.begin(ConfigurationError("wrong"))
    with pytest.raises(ConfigurationError):
        inbox.check()
    if is_heard:
        outages.end()
    else:
        outages.begin(OSError("gone"))
    inbox.check()


@pytest.mark.parametrize("verb", ["end", "refuse"])
async def test_who_waits_is_told_of_each_change(outages: Outages, verb: str) -> None:
    """That it is heard, or that it never will be."""
    waiting = asyncio.create_task(outages.wait())
    await asyncio.sleep(0)
    outages.begin(OSError("gone"))
    await asyncio.sleep(0)
    assert not waiting.done()
    outages.end() if verb == "end" else outages.refuse(LayerClosed("closed"))
    await asyncio.wait_for(waiting, 5)
