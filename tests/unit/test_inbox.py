"""Readers of any loop: who is woken, and that whoever has gone, or was freed at an awkward moment, holds nobody up."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from channels_pg_sa import LayerClosed
from channels_pg_sa.drops import DropLog
from channels_pg_sa.entry import Entry
from channels_pg_sa.parcels import Acknowledged, Parcel, Ring
from channels_pg_sa.receiving.clock import Clock
from channels_pg_sa.receiving.dispatcher import Dispatcher
from channels_pg_sa.receiving.inbox import Inbox
from channels_pg_sa.receiving.localchannels import Effects

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


def read_and_vanish(inbox: Inbox) -> None:
    """Leave a reader behind, in a cycle that only the garbage collector frees.

    Not a task's: from Python 3.14 on what a task awaits holds the task.
    """

    async def main() -> None:
        reading = inbox.receive(CHANNEL, shared=False)
        reading.send(None)
        cycle: list[object] = [reading]
        cycle.append(cycle)

    asyncio.run(main())


def test_a_reader_that_is_freed_under_the_lock_does_not_wait_for_it(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """The garbage collector comes whenever something is allocated."""
    gc.disable()
    try:
        read_and_vanish(inbox)
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


# Readers that wait on the loop of the test ---------------------------------------------------------


async def turns() -> None:
    """Let whoever was woken have its turn."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_nobody_takes_a_message_after_a_failure(inbox: Inbox) -> None:
    """What is here may be on its way back to others, who would get it as well."""
    with inbox.decisions() as dispatcher:
        dispatcher.put([CHANNEL], message())
    inbox.fail(ValueError("broken"))
    assert inbox.take(CHANNEL) is None
    with pytest.raises(ValueError, match="broken"):
        await inbox.receive(CHANNEL, shared=False)


async def test_what_was_decided_before_an_error_is_done_by_the_next(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """A thread may be interrupted anywhere, and another's reader has been promised a message."""
    reader = asyncio.create_task(inbox.receive(CHANNEL, shared=False))
    await turns()

    def interrupted() -> None:
        with inbox.decisions():
            dispatcher.put([CHANNEL], message())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    with inbox.decisions():
        pass
    assert isinstance(await asyncio.wait_for(reader, 5), Entry)


async def test_a_failure_wakes_all_who_wait(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """Each is told, and leaves; who has not come yet can be let go."""
    reader = asyncio.create_task(inbox.receive(CHANNEL, shared=False))
    await turns()
    absent = asyncio.get_running_loop().create_future()
    dispatcher.wait(CHANNEL, absent)
    inbox.fail(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(reader, 10)
    assert dispatcher.every_reader() == [absent]
    inbox.dismiss()
    assert dispatcher.reader_count == 0


async def test_who_was_served_waits_no_more(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """Otherwise it would be woken for the next message, in vain."""
    reader = asyncio.create_task(inbox.receive(CHANNEL, shared=False))
    await turns()
    with inbox.decisions():
        dispatcher.put([CHANNEL], message())
    assert (await reader).payload == b"x"
    assert (dispatcher.reader_count, dispatcher.woken) == (0, set())


async def test_a_reader_that_comes_too_late_asks_anew(dispatcher: Dispatcher) -> None:
    """Another has taken the row that was claimed for it."""
    wanted: list[str] = []
    inbox = Inbox(dispatcher, Clock(), work=lambda _: None, want=wanted.append)
    reader = asyncio.create_task(inbox.receive("jobs", shared=True))
    own = asyncio.create_task(inbox.receive(CHANNEL, shared=False))
    await turns()
    assert wanted == ["jobs"]
    with inbox.decisions():
        dispatcher.put(["jobs"], message())
    assert inbox.take("jobs") is not None
    await turns()
    assert wanted == ["jobs", "jobs"]
    for waiting in (reader, own):
        waiting.cancel()
    await asyncio.gather(reader, own, return_exceptions=True)


async def test_who_was_woken_a_round_ago_and_has_not_come_is_passed_over(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """Not sooner: it may be about to come."""
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
    with inbox.decisions():
        dispatcher.wait(CHANNEL, first)
        dispatcher.wait(CHANNEL, second)
        dispatcher.put([CHANNEL], message())
    inbox.keep_house(DropLog(), thoroughly=False)
    assert dispatcher.woken == {first}
    inbox.keep_house(DropLog(), thoroughly=False)
    assert dispatcher.woken == {second}
    await turns()
    assert second.done()


def test_readers_of_a_loop_that_was_closed_hold_nobody_up(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """The message waits for one who comes; without a message they are found when the house is kept thoroughly."""
    loop = asyncio.new_event_loop()
    with inbox.decisions():
        dispatcher.wait(CHANNEL, loop.create_future())
        dispatcher.wait("jobs", loop.create_future())
    loop.close()
    with inbox.decisions():
        dispatcher.put([CHANNEL], message())
    assert inbox.take(CHANNEL) is not None
    assert dispatcher.reader_count == 1
    inbox.keep_house(DropLog(), thoroughly=True)
    assert dispatcher.reader_count == 0


def test_what_is_not_read_and_not_used_is_freed(dispatcher: Dispatcher) -> None:
    """Messages when they expire, mailboxes when the house is kept thoroughly."""
    clock = Clock()
    clock.observe(time.monotonic(), time.monotonic(), 1000.0)
    inbox = Inbox(dispatcher, clock, work=lambda _: None, want=lambda _: None)
    with inbox.decisions():
        dispatcher.put([CHANNEL], Entry(None, 999.0, b"x"))
    inbox.keep_house(DropLog(), thoroughly=False)
    assert dispatcher.unread_count == 0
    assert list(dispatcher._locals) == [CHANNEL]
    inbox.keep_house(DropLog(), thoroughly=True)
    assert dispatcher._locals == {}


def test_what_had_no_room_is_told_once() -> None:
    """By channel and group."""
    dispatcher, drops = Dispatcher(lambda _: 1, bounded=True), DropLog()
    inbox = Inbox(dispatcher, Clock(), work=lambda _: None, want=lambda _: None)
    with inbox.decisions():
        for _ in range(3):
            dispatcher.put([CHANNEL], message(), "group")
    for _ in range(2):
        inbox.keep_house(drops, thoroughly=False)
        assert drops.counters == {"over_capacity": 2}


def test_each_decision_that_needs_the_database_is_passed_on(dispatcher: Dispatcher) -> None:
    """Whatever else was decided with it, and nothing if nothing was."""
    passed_on: list[Effects] = []
    inbox = Inbox(dispatcher, Clock(), work=passed_on.append, want=lambda _: None)
    decided = [
        (Effects(rings=[Ring(1, "jobs")]), [Ring(1, "jobs")]),
        (Effects(flushes=[Acknowledged("1", "n")]), [Acknowledged("1", "n")]),
        (Effects(fetch=[(2, float("inf"))]), [Parcel(2, CHANNEL, False, float("inf"), None)]),
        (Effects(delete=[(3, float("inf"))]), [Parcel(3, "group", True, float("inf"), b"eA==")]),
    ]
    for effects, frames in decided:
        with inbox.decisions():
            dispatcher.hear(frames, 0.0)
        assert passed_on.pop() == effects
    with inbox.decisions():
        dispatcher.put(["another"], message())
    assert passed_on == []


async def test_keeping_house_leaves_those_who_wait(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """However thoroughly: their loop runs, and a message may come at any time."""
    reader = asyncio.create_task(inbox.receive(CHANNEL, shared=False))
    await turns()
    inbox.keep_house(DropLog(), thoroughly=True)
    assert dispatcher.reader_count == 1
    with inbox.decisions():
        dispatcher.put([CHANNEL], message())
    assert (await asyncio.wait_for(reader, 5)).payload == b"x"


async def test_who_was_woken_after_the_last_round_is_not_passed_over(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """It is counted from one round to the next, whatever the last one found."""
    inbox.keep_house(DropLog(), thoroughly=False)
    reader = asyncio.get_running_loop().create_future()
    with inbox.decisions():
        dispatcher.wait(CHANNEL, reader)
        dispatcher.put([CHANNEL], message())
    inbox.keep_house(DropLog(), thoroughly=False)
    assert dispatcher.woken == {reader}


@pytest.mark.parametrize("waits", [False, True])
async def test_what_taking_decides_is_passed_on_at_once(waits: bool) -> None:
    """Where the row counts against a capacity, a sender waits for it to be deleted."""
    passed_on: list[Effects] = []
    dispatcher = Dispatcher(lambda _: 1, bounded=True)
    inbox = Inbox(dispatcher, Clock(), work=passed_on.append, want=lambda _: None)
    reader = asyncio.create_task(inbox.receive(CHANNEL, shared=False)) if waits else None
    await turns()
    with inbox.decisions():
        dispatcher.hear([Parcel(1, CHANNEL, False, float("inf"), b"eA==")], 0.0)
    entry = inbox.take(CHANNEL) if reader is None else await asyncio.wait_for(reader, 5)
    assert entry is not None
    assert [effects.delete for effects in passed_on] == [[(1, float("inf"))]]


@pytest.mark.parametrize("verb", ["serve", "fail"])
def test_nothing_reopens_an_inbox_that_was_closed(verb: str) -> None:
    """An outage may begin or end while the layer closes."""
    inbox = Inbox(Dispatcher(lambda _: None, bounded=False), Clock(), work=lambda _: None, want=lambda _: None)
    inbox.fail(LayerClosed("The layer is closed."))
    inbox.fail(ValueError("broken")) if verb == "fail" else inbox.serve()
    assert inbox.is_closed
    with pytest.raises(LayerClosed):
        inbox.check()


async def test_who_was_woken_and_has_come_is_remembered_no_longer(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """One for each round would be a leak."""
    for _ in range(3):
        reader = asyncio.get_running_loop().create_future()
        with inbox.decisions():
            dispatcher.wait(CHANNEL, reader)
            dispatcher.put([CHANNEL], message())
        inbox.keep_house(DropLog(), thoroughly=False)
        assert inbox._woken == {reader}
        with inbox.decisions():
            dispatcher.take(CHANNEL, 0.0)
            dispatcher.served(CHANNEL, reader)
    await turns()


async def test_who_was_woken_in_vain_waits_on_in_its_place(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """Another was faster; who comes later is no reason to wait longer, and nobody waits twice."""
    readers = [asyncio.create_task(inbox.receive(CHANNEL, shared=False))]
    await turns()
    with inbox.decisions():
        dispatcher.put([CHANNEL], message())
        assert dispatcher.take(CHANNEL, 0.0) is not None
        readers.append(asyncio.create_task(inbox.receive(CHANNEL, shared=False)))
        dispatcher.wait(CHANNEL, later := asyncio.get_running_loop().create_future())
    await turns()
    assert dispatcher.reader_count == 3
    with inbox.decisions():
        dispatcher.put([CHANNEL], message())
    await turns()
    assert [reader.done() for reader in readers] == [True, False]
    assert not later.done()
    with inbox.decisions():
        dispatcher.remove_reader(CHANNEL, later)
        dispatcher.put([CHANNEL], message())
    await asyncio.wait_for(readers[1], 5)


async def test_a_reader_of_a_prefix_takes_what_is_there_and_what_comes(inbox: Inbox, dispatcher: Dispatcher) -> None:
    """Its name is not that of the channel in which something is."""
    with inbox.decisions():
        dispatcher.put(["w!x"], message())
    assert (await asyncio.wait_for(inbox.receive("w!", shared=True), 5)).payload == b"x"
    reader = asyncio.create_task(inbox.receive("w!", shared=True))
    await turns()
    with inbox.decisions():
        dispatcher.put(["w!y"], message())
    assert (await asyncio.wait_for(reader, 5)).payload == b"x"


async def test_a_reader_who_was_chosen_and_not_told_is_told_by_the_housekeeping(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's handler may raise between the two, in a thread that gives up another receive()."""
    reader = asyncio.create_task(inbox.receive(CHANNEL, shared=False))
    await asyncio.sleep(0)
    with monkeypatch.context() as patched:
        patched.setattr(inbox, "_wake", lambda _readers: [])
        with inbox.decisions() as dispatcher:
            dispatcher.put([CHANNEL], message())
    for _ in range(2):
        inbox.keep_house(DropLog(), thoroughly=False)
    assert (await asyncio.wait_for(reader, 10)).payload == b"x"
