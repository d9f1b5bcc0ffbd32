"""Readers whose loop is gone, or whose coroutine is freed at an awkward moment, hold nobody up."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from channels_pg_sa.clock import Clock
from channels_pg_sa.dispatcher import Dispatcher
from channels_pg_sa.drops import DropLog
from channels_pg_sa.entry import Entry
from channels_pg_sa.inbox import Inbox

CHANNEL = "s.0123456789ab!a"


@pytest.fixture
def dispatcher() -> Dispatcher:
    """One without limits."""
    return Dispatcher(lambda _: None, bounded=False)


@pytest.fixture
def inbox(dispatcher: Dispatcher) -> Inbox:
    """One whose decisions need no database."""
    return Inbox(dispatcher, Clock(), work=lambda _: None, want=lambda _: None)


def message() -> Entry:
    """One that never had a row."""
    return Entry(None, float("inf"), b"x")


def read_on_a_loop_that_dies(inbox: Inbox) -> None:
    """Leave a reader behind that is woken as its loop stops, in a cycle that only the garbage collector frees."""
    loop = asyncio.new_event_loop()

    async def consume() -> None:
        me = asyncio.current_task()
        assert me is not None
        me._log_destroy_pending = False  # type: ignore[attr-defined]  # that it dies is what this is about
        await inbox.receive(CHANNEL, shared=False)

    async def main() -> None:
        consumer = asyncio.ensure_future(consume())
        await asyncio.sleep(0)
        loop.call_soon(loop.stop)
        with inbox.decisions() as dispatcher:
            dispatcher.put([CHANNEL], message())
        del consumer

    main_task = loop.create_task(main())
    loop.run_forever()
    assert main_task.done()
    loop.close()


def test_a_reader_that_is_freed_under_the_lock_does_not_wait_for_it(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """The garbage collector comes whenever something is allocated."""
    gc.disable()
    try:
        read_on_a_loop_that_dies(inbox)
        assert dispatcher.reader_count == 1

        def collect() -> None:
            with inbox.decisions():
                gc.collect()

        collecting = threading.Thread(target=collect, daemon=True)
        collecting.start()
        collecting.join(10)
        assert not collecting.is_alive(), "it waits for itself"
    finally:
        gc.enable()
    inbox.keep_house(DropLog(), thoroughly=False)
    assert dispatcher.reader_count == 0


def test_many_readers_on_a_loop_that_stands_still(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """All of them are passed over, however many there are; the message waits for one who comes."""
    loop = asyncio.new_event_loop()
    readers = [loop.create_task(inbox.receive(CHANNEL, shared=False)) for _ in range(2_000)]
    loop.run_until_complete(asyncio.wait(readers, timeout=0.01))
    with inbox.decisions():
        dispatcher.put([CHANNEL], message())
    assert dispatcher.reader_count == 0
    assert inbox.take(CHANNEL) is not None
    for reader in readers:
        reader.cancel()
    loop.run_until_complete(asyncio.gather(*readers, return_exceptions=True))
    loop.close()


def test_a_failure_does_not_remember_who_saw_it(inbox: Inbox) -> None:
    """It is one object for all, and would hold every frame it was raised through."""
    inbox.fail(ValueError("broken"))
    for _ in range(10):
        with pytest.raises(ValueError, match="broken") as caught:
            inbox.check()
    assert len(caught.traceback) == 2
