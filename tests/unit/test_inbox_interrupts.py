"""A signal's handler that raises in receive(), wherever it may come: Ctrl-C, or the end of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from channels_pg_sa.entry import Entry
from channels_pg_sa.receiving import inbox as inbox_module
from channels_pg_sa.receiving.clock import Clock
from channels_pg_sa.receiving.dispatcher import Dispatcher
from channels_pg_sa.receiving.inbox import Inbox

CHANNEL = "s.0123456789ab!a"
CODE = str(Path(inbox_module.__file__).parent), contextlib.__file__  # and what guards ours

Act = Callable[[Inbox], object]


def take(inbox: Inbox) -> Entry | None:
    """As receive() does first."""
    return inbox.take(CHANNEL)


def wait(inbox: Inbox) -> Entry | None:
    """As receive() does next: take, or begin to wait."""
    coroutine = inbox.receive(CHANNEL, shared=False)
    try:
        coroutine.send(None)
    except StopIteration as end:
        found: Entry = end.value
        return found
    finally:
        coroutine.close()
    return None


def cancelled(inbox: Inbox) -> Entry | None:
    """As receive() of a task that is cancelled while it waits."""
    coroutine = inbox.receive(CHANNEL, shared=False)
    try:
        coroutine.send(None)
        with contextlib.suppress(asyncio.CancelledError):
            coroutine.throw(asyncio.CancelledError())
    except StopIteration as end:
        found: Entry = end.value
        return found
    finally:
        coroutine.close()  # else the garbage collector does so, and be it in another trace
    return None


def interrupt(act: Act, inbox: Inbox, place: int) -> BaseException | None:
    """Raise at one of the places in the code where a signal's handler may run; None if it came not so far.

    These are the starts of functions, and what follows a call or a jump backwards: at no others does Python look.
    https://github.com/python/cpython/blob/3.13/InternalDocs/interpreter.md
    """
    left = place
    done: dict[FrameType, str] = {}  # by frame, the instruction before

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before, done[frame] = done.get(frame, "CALL"), opname(frame)
            left -= before.startswith(("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE"))
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act(inbox)
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(before)
    return None


def opname(frame: FrameType) -> str:
    """The instruction that a frame is about to do."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


def make_inbox(messages: int) -> Inbox:
    """One with so many unread messages."""
    dispatcher = Dispatcher(lambda _: None, bounded=True)
    for number in range(messages):
        dispatcher.put([CHANNEL], Entry(number, float("inf"), b"x", keeps_row=True))
    return Inbox(dispatcher, Clock(), work=lambda _: None, want=lambda _: None)


@pytest.mark.parametrize("messages", [0, 1, 2])
@pytest.mark.parametrize("act", [take, wait, cancelled])
async def test_an_interrupt_anywhere_in_a_receive(act: Act, messages: int) -> None:
    """The lock is free after it, no other message is lost, and the channel goes on."""
    assert not interrupt(act, make_inbox(messages), sys.maxsize)  # from here on Python 3.12 tells of instructions
    place = 0
    while error := interrupt(act, inbox := make_inbox(messages), place):
        place += 1
        # Its traceback keeps whatever was under way until it is printed.
        assert inbox._lock.acquire(blocking=False), f"nobody has it, for ever, after {error!r}"
        inbox._lock.release()
        with inbox.decisions() as dispatcher:
            dispatcher.put([CHANNEL], Entry(messages, float("inf"), b"last"))
        taken = [entry.id for entry in iter(lambda: take(inbox), None)]
        everything = list(range(messages + 1))
        assert taken in (everything, everything[1:]), f"at place {place}"
    assert place > 1
