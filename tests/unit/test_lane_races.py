"""What may come between any two steps of a lane: rounds that do not end, interruptions, a closing."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from channels_pg_sa.call import Call, settle
from channels_pg_sa.sending import lane as lane_module
from channels_pg_sa.sending.callqueue import CallQueue
from channels_pg_sa.sending.lane import Lane, Over
from tests.support.lanes import Bench, Calls, FastPath, Late, finish_round, outcome
from tests.support.waiting import eventually_async


async def until_settled(*calls: Call[int]) -> None:
    """Wait until the outcomes of calls are there, whatever their loops do."""

    async def look() -> bool:
        return all(call.settled for call in calls)

    await eventually_async(look, within=5)


def interrupted(act: Callable[[], object]) -> threading.Thread:
    """Run what a KeyboardInterrupt will end, in a thread that stands for the main one."""

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("count", [1, 3])
async def test_a_deadline_holds_for_what_the_lane_s_loop_began(count: int) -> None:
    """By the fast path, which may never end."""
    bench = FastPath()
    calls = [bench.call(number, 0.05) for number in range(count)]
    await bench.entered.wait()
    await until_settled(*calls)
    assert [type(call.error) for call in calls] == [Late] * count


async def test_a_deadline_is_not_waited_for_longer_than_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However seldom the lane looks at those that are far away."""
    monkeypatch.setattr(lane_module, "ROUND", 3600)
    bench = Bench()
    call: Call[int] = Call(1, 0.05, None)
    bench.lane.submit(call)
    await until_settled(call)
    assert isinstance(call.error, Late)


@pytest.mark.parametrize("kind", [Bench, FastPath])
async def test_a_deadline_holds_for_what_a_thread_calls(kind: type[Bench | FastPath]) -> None:
    """Nobody gathers, and the lane's loop runs or begins its batch, which may never end."""
    bench = kind()
    call: Call[int] = Call(1, 0.05, None)
    bench.lane.submit(call)
    await until_settled(call)
    assert isinstance(call.error, Late)


async def test_the_late_end_of_a_batch_is_told_to_nobody() -> None:
    """The thread has its outcome already, even if it has not looked yet; the lane goes on."""
    bench = Bench()
    late: Call[int] = Call(1, 0.05, None)
    bench.lane.submit(late)
    await until_settled(late)
    bench.gate.set()
    assert await outcome(bench.call(2)) == 20
    with pytest.raises(Late):
        late.wait()


async def test_what_was_done_in_time_is_not_late_afterwards() -> None:
    """Its thread looks only when the rest of its batch has been given up, of which it has been told long before."""

    async def run(calls: Calls) -> None:
        calls[0].result = 10
        settle(calls[:1])
        await asyncio.Event().wait()

    lane: Lane[int] = Lane("test", asyncio.get_running_loop(), run, late=lambda call: Late(call.started))
    done, late = (lane.submit(Call(number, 0.05, None)) for number in (1, 2))
    await until_settled(late)
    assert done.wait() == 10
    await lane.close(RuntimeError("closed"), 0)


async def test_each_call_of_a_batch_is_given_up_at_its_own_deadline() -> None:
    """Although nothing waits behind the batch that would be watched as well."""
    bench = Bench()
    first, second = (bench.lane.submit(Call(number, 0.05 * number, None)) for number in (1, 2))
    await until_settled(first, second)
    assert bench.entered.is_set()
    assert isinstance(second.error, Late)


async def test_a_deadline_holds_for_what_a_caller_began_after_a_rest() -> None:
    """When nothing was left to watch."""
    bench = FastPath()
    await bench.alone()

    async def rests() -> bool:
        return bench.lane._timer is None

    await eventually_async(rests, within=5)
    call = bench.call(1, 0.05)
    assert bench.begun
    await until_settled(call)
    assert isinstance(call.error, Late)


async def test_a_deadline_holds_for_an_interrupted_leader(
    stopped: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While what it may have begun comes to no rest."""
    bench = Bench(at_rest=lambda _: None)

    def schedule(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, "call_soon", schedule)
    call: Call[int] = Call(1, 0.05, stopped)
    with pytest.raises(KeyboardInterrupt):
        bench.lane.submit(call)
    await until_settled(call)
    assert isinstance(call.error, Late)


async def test_an_interruption_after_the_fast_path_gave_back_what_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane's loop runs it already: it is not taken over, and has its result."""
    given: list[Over] = []

    def begin(_: Calls, over: Over) -> bool:
        given.append(over)
        return len(given) == 1

    bench = Bench(fast_path=begin)
    bench.lane._calls.alone = True

    def watch(_: Lane[int]) -> None:
        monkeypatch.undo()
        given[0](False)
        raise KeyboardInterrupt

    monkeypatch.setattr(Lane, "_watch_soon", watch)
    call: Call[int] = Call(1, 30, None)
    with pytest.raises(KeyboardInterrupt):
        bench.lane.submit(call)
    await bench.entered.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    bench.gate.set()
    await until_settled(call)
    assert (call.error, call.result) == (None, 10)


async def test_a_round_that_lasts_is_not_waited_for(stopped: asyncio.AbstractEventLoop) -> None:
    """Its callers' jobs are done although nobody else calls."""
    bench = Bench()
    bench.gate.set()
    call: Call[int] = Call(1, 30, stopped)
    bench.lane.submit(call)
    await until_settled(call)
    assert call.result == 10


async def test_who_does_not_wait_for_the_outcome_is_not_waited_for(stopped: asyncio.AbstractEventLoop) -> None:
    """Nobody knows when such a caller returns to its loop."""
    bench = Bench()
    bench.lane.submit(Call(1, 30, stopped, report=lambda _: None))
    assert not bench.lane._calls.is_gathering
    await asyncio.wait_for(bench.entered.wait(), 10)


async def test_an_interruption_at_the_end_of_the_round(
    stopped: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the step away that would have begun the batch; what the caller does to clean up is done all the same."""
    bench = Bench()
    bench.gate.set()

    def gathered(_: Lane[int]) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Lane, "_gathered", gathered)
    calls = [bench.lane.submit(Call(1, 30, stopped))]
    thread = interrupted(lambda: finish_round(stopped))
    await asyncio.to_thread(thread.join)
    calls.append(bench.lane.submit(Call(2, 30, stopped)))
    await until_settled(*calls)
    calls.append(bench.lane.submit(Call(3, 30, stopped)))
    await until_settled(*calls)
    assert [call.result for call in calls] == [10, 20, 30]


@pytest.mark.parametrize("where", ["a coroutine", "a thread"])
async def test_an_interruption_after_the_lane_s_loop_has_begun(
    stopped: asyncio.AbstractEventLoop, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is under way, with another's call in it: that is not given up, and no second one begins beside it."""
    bench = FastPath()
    loop = stopped if where == "a coroutine" else asyncio.get_running_loop()
    name = "call_soon" if where == "a coroutine" else "call_soon_threadsafe"
    original, begin = getattr(loop, name), bench.lane._fast_path
    reached, begun = threading.Event(), threading.Event()
    lead: Call[int] = Call(1, 30, stopped if where == "a coroutine" else None)
    other: Call[int] = Call(2, 30, None)

    def noted(calls: Calls, over: Any) -> bool:
        assert begin is not None
        answer = begin(calls, over)
        begun.set()
        return answer

    def schedule(callback: Callable[..., object], *arguments: object) -> object:
        if threading.current_thread() is not thread or reached.is_set():
            return original(callback, *arguments)
        reached.set()
        bench.lane.submit(other)
        original(callback, *arguments)
        begun.wait(10)
        raise KeyboardInterrupt

    bench.lane._fast_path = noted
    monkeypatch.setattr(loop, name, schedule)
    ready = threading.Event()
    thread = interrupted(lambda: ready.wait(10) and bench.lane.submit(lead))
    ready.set()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0.02)
    bench.call(3)
    await asyncio.sleep(0.02)
    assert [[call.job for call in calls] for calls, _ in bench.begun] == [[1, 2]]
    assert other.error is None


async def test_an_interruption_while_a_batch_is_taken() -> None:
    """What was about to be taken is not lost, others' calls neither, and the lane goes on."""
    bench = FastPath()
    await bench.alone()
    queue = bench.lane._calls
    take, cost = queue.take, queue._cost
    behind: Call[int] = Call(2, 30, None)

    def interrupted_at_the_second(job: int) -> int:
        if job == 2:
            queue._cost = cost
            raise KeyboardInterrupt
        return 0

    def another_calls_first() -> Calls:
        queue.take = take  # type: ignore[method-assign]
        thread = threading.Thread(target=lambda: bench.lane.submit(behind))
        thread.start()
        thread.join()
        return take()

    queue._cost = interrupted_at_the_second
    queue.take = another_calls_first  # type: ignore[method-assign]
    call: Call[int] = Call(1, 30, None)
    with pytest.raises(KeyboardInterrupt):
        bench.lane.submit(call)
    await until_settled(call)
    while not behind.settled:
        await bench.finish()
    later = bench.call(3)
    await bench.finish()
    assert await outcome(later) is None


def test_an_interruption_between_the_steps_of_taking() -> None:
    """A call that has left the queue is in the batch: whoever takes over finds it."""

    class Interrupting(deque[Call[int]]):
        def popleft(self) -> Call[int]:
            super().popleft()
            raise KeyboardInterrupt

    queue: CallQueue[int] = CallQueue(cost=lambda _: 0, budget=1, batch=9, limit=9)
    call: Call[int] = Call(1, 30, None)
    queue.enter(call)
    queue._waiting = Interrupting(queue._waiting)
    with pytest.raises(KeyboardInterrupt):
        queue.take()
    assert queue.take_over(call) == (True, [call])


def interrupt_a_leader(bench: Bench, call: Call[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt a call that leads as it is about to have the end of its loop's round waited for."""

    def schedule(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(call.loop, "call_soon", schedule)
    with pytest.raises(KeyboardInterrupt):
        bench.lane.submit(call)


async def test_an_interrupted_leader_that_is_given_up_at_once(
    stopped: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline passes before the lane's loop hears of the interruption."""
    bench = Bench()
    bench.gate.set()
    interrupt_a_leader(bench, Call(1, 0.0, stopped), monkeypatch)
    bench.lane._expire()
    behind: Call[int] = Call(2, 30, stopped)
    bench.lane.submit(behind)
    await until_settled(behind)
    assert behind.result == 20


async def test_no_batch_begins_beside_one_that_was_taken_over(
    stopped: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gathered before the interruption does not gather any more."""
    bench = Bench()
    interrupt_a_leader(bench, Call(1, 30, stopped), monkeypatch)
    await bench.entered.wait()
    call = bench.call(2)
    bench.lane._expire()
    await asyncio.sleep(0)
    assert len(bench.lane) == 1
    bench.gate.set()
    assert await outcome(call) == 20
    assert bench.batches == [[1], [2]]


def test_what_is_given_up_is_not_begun() -> None:
    """Nor in the moment before its caller is told."""
    queue: CallQueue[int] = CallQueue(cost=lambda _: 0, budget=1, batch=9, limit=9)
    call: Call[int] = Call(1, 0.0, None)
    queue.enter(call)
    calls = queue.take()
    assert queue.give_up(call.deadline, lambda call: Late(call.started)) == ([call], None)
    assert queue.start(calls) == []


def test_who_comes_while_a_lead_is_taken_over_does_not_lead() -> None:
    """The leader found nothing to take, for its call was late; the lane's loop is about to look again."""
    queue: CallQueue[int] = CallQueue(cost=lambda _: 0, budget=1, batch=9, limit=9)
    first: Call[int] = Call(1, 0.0, None)
    queue.enter(first)
    assert queue.give_up(first.deadline, lambda call: Late(call.started)) == ([first], None)
    assert queue.take() == []
    assert queue.take_over(first) == (True, [])
    second: Call[int] = Call(2, 30, None)
    queue.enter(second)
    assert (first.leads, second.leads) == (True, False)


async def test_an_interruption_beside_a_batch_that_lets_a_cancellation_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would begin the next batch; one does."""
    loop = asyncio.get_running_loop()
    running: list[int] = []
    most = 0

    async def run(calls: Calls) -> None:
        nonlocal most
        if calls[0].job == 0:
            raise asyncio.CancelledError
        running.append(calls[0].job)
        most = max(most, len(running))
        await asyncio.sleep(0.02)
        running.remove(calls[0].job)

    lane: Lane[int] = Lane("test", loop, run, late=lambda call: Late(call.started), batch=1)
    original = loop.call_soon_threadsafe

    def schedule(callback: Callable[..., Any], *arguments: Any) -> Any:
        if callback.__name__ == "_start":
            original(callback, *arguments)
            raise KeyboardInterrupt
        if callback.__name__ == "_go_on_after":  # reaches the loop in the round of the task's step
            return original(loop.call_soon, callback, *arguments)
        return original(callback, *arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", schedule)
    calls: Calls = [Call(number, 30, None) for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        lane.submit(calls[0])
    for call in calls[1:]:
        lane.submit(call)
    await until_settled(*calls)
    assert most == 1


async def test_closing_while_a_thread_finds_nothing_to_take() -> None:
    """Its call was late; another's, which came then, has the time that closing gives."""
    bench = FastPath()
    await bench.alone()
    queue = bench.lane._calls
    original = queue.take
    about_to_take, has_taken, go_on = (threading.Event() for _ in range(3))

    def take() -> Calls:
        if threading.current_thread() is not thread:
            return original()
        about_to_take.set()
        go_on.wait(10)
        go_on.clear()
        calls = original()
        has_taken.set()
        go_on.wait(10)
        return calls

    queue.take = take  # type: ignore[method-assign]
    late: Call[int] = Call(1, 0.0, None)
    thread = threading.Thread(target=bench.lane.submit, args=(late,))
    thread.start()
    await asyncio.to_thread(about_to_take.wait)
    bench.lane._expire()
    assert late.settled
    go_on.set()
    await asyncio.to_thread(has_taken.wait)
    call = bench.call(2)
    await bench.entered.wait()
    closing = asyncio.create_task(bench.lane.close(RuntimeError("closed"), 10))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0.05)
    await bench.finish()
    await closing
    assert await outcome(call) is None


def test_closing_at_the_end_of_the_round(stopped: asyncio.AbstractEventLoop) -> None:
    """The loop of a caller is not told that the lane's is no more."""
    own = asyncio.new_event_loop()
    told: list[dict[str, Any]] = []
    stopped.set_exception_handler(lambda _, context: told.append(context))

    async def run(_: Calls) -> None: ...

    async def make() -> Lane[int]:
        return Lane("test", own, run, late=lambda call: Late(call.started))

    lane = own.run_until_complete(make())
    lane.submit(Call(1, 30, stopped))
    original = own.call_soon_threadsafe

    def schedule(callback: Callable[..., Any], *arguments: Any) -> Any:
        own.call_soon_threadsafe = original  # type: ignore[method-assign]
        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        return original(callback, *arguments)

    def close() -> None:
        own.run_until_complete(lane.close(RuntimeError("closed"), 1))
        own.close()

    own.call_soon_threadsafe = schedule  # type: ignore[assignment,method-assign]
    finish_round(stopped)
    finish_round(stopped)
    assert told == []
    assert own.is_closed()
