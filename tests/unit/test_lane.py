"""Natural batching, without a database: what goes together, when a caller is told, and that nobody is left waiting."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable

import pytest

from channels_pg_sa import call as call_module
from channels_pg_sa.call import Call, resolve, settle
from channels_pg_sa.errors import SendError
from channels_pg_sa.sending.callqueue import ENOUGH
from channels_pg_sa.sending.lane import Lane, Over
from tests.support.lanes import Bench, Calls, FastPath, Late, finish_round, outcome, result_of


async def test_calls_that_arrive_while_a_batch_runs_go_together() -> None:
    """In the order they came, each with its own result."""
    bench = Bench()
    first = bench.call(0)
    await bench.entered.wait()
    others = [bench.call(number) for number in range(1, 6)]
    bench.gate.set()
    assert [await outcome(call) for call in (first, *others)] == [0, 10, 20, 30, 40, 50]
    assert bench.batches == [[0], [1, 2, 3, 4, 5]]


async def test_a_batch_is_bounded_by_number_and_by_cost() -> None:
    """It ends with the call that makes it enough of either; what is left goes with the next."""
    bench = Bench(batch=3, cost=lambda job: job, budget=10)
    calls = [bench.call(job) for job in (1, 2, 3, 4, 6, 9, 50, 50, 1)]
    bench.gate.set()
    for call in calls:
        await outcome(call)
    assert bench.batches == [[1, 2, 3], [4, 6], [9, 50], [50], [1]]


async def test_of_many_calls_half_go_together() -> None:
    """While the others are done, their callers come again."""
    bench = Bench()
    first = bench.call(0)
    await bench.entered.wait()
    calls = [bench.call(number) for number in range(6 * ENOUGH)]
    bench.gate.set()
    for call in (first, *calls):
        await outcome(call)
    assert [len(batch) for batch in bench.batches] == [1, 3 * ENOUGH, 3 * ENOUGH // 2, ENOUGH, ENOUGH // 2]


async def test_calls_that_nobody_waits_for_all_go_together() -> None:
    """Their callers are not held up by it, and more statements would only cost more."""
    bench = Bench()
    first = bench.call(0)
    await bench.entered.wait()
    told: list[int] = []
    for number in range(6 * ENOUGH):
        unconfirmed = Call(number, 30, asyncio.get_running_loop(), report=lambda call: told.append(call.job))
        bench.lane.submit(unconfirmed)
    bench.gate.set()
    await outcome(first)
    await outcome(bench.call(0))
    assert [len(batch) for batch in bench.batches] == [1, 6 * ENOUGH, 1]
    assert told == list(range(6 * ENOUGH))


async def test_a_full_lane_refuses() -> None:
    """Waiting calls are bounded."""
    bench = Bench(limit=2)
    calls = [bench.call(number) for number in range(2)]
    with pytest.raises(SendError, match="2 calls wait already"):
        bench.call(2)
    bench.gate.set()
    assert [await outcome(call) for call in calls] == [0, 10]


async def test_each_call_has_its_own_error() -> None:
    """One that fails does not touch the others."""
    bench = Bench()
    calls = [bench.call(number) for number in (1, -1, 2)]
    bench.gate.set()
    assert [type(await outcome(call)) for call in calls] == [int, ValueError, int]


async def test_a_batch_that_raises_fails_all_its_calls_and_no_other() -> None:
    """The lane goes on with the next."""

    async def run(calls: Calls) -> None:
        if calls[0].job == 0:
            raise RuntimeError("broken")

    loop = asyncio.get_running_loop()
    lane: Lane[int] = Lane("test", loop, run, late=lambda call: Late(call.started), batch=2)
    calls = [lane.submit(Call(number, 30, loop)) for number in range(3)]
    assert [type(await outcome(call)) for call in calls] == [RuntimeError, RuntimeError, type(None)]


async def test_a_batch_that_raises_leaves_the_errors_that_its_calls_have() -> None:
    """They know better what became of each."""

    async def run(calls: Calls) -> None:
        calls[0].error = ValueError("its own")
        raise RuntimeError("broken")

    loop = asyncio.get_running_loop()
    lane: Lane[int] = Lane("test", loop, run, late=lambda call: Late(call.started))
    calls = [lane.submit(Call(number, 30, loop)) for number in range(2)]
    assert [str(await outcome(call)) for call in calls] == ["its own", "broken"]


async def test_a_batch_that_raises_leaves_the_outcomes_that_were_told() -> None:
    """Their callers have not looked yet."""

    async def run(calls: Calls) -> None:
        calls[0].result = 10
        settle(calls[:1])
        raise RuntimeError("broken")

    loop = asyncio.get_running_loop()
    lane: Lane[int] = Lane("test", loop, run, late=lambda call: Late(call.started))
    calls = [lane.submit(Call(number, 30, loop)) for number in range(2)]
    assert [type(await outcome(call)) for call in calls] == [int, RuntimeError]


async def test_who_has_the_outcome_reported_is_not_told() -> None:
    """Whether it is there already or not, and whatever it is."""
    for loop in (None, asyncio.get_running_loop()):
        call = Call(1, 30, loop, report=lambda _: None)
        call.error = ValueError("what is reported")
        assert call.wait() is None
        assert await outcome(call) is None


async def test_who_waits_is_told_once() -> None:
    """Whoever is told twice, or does not wait any more, is no error: others wait behind it."""
    told, cancelled, behind = (asyncio.get_running_loop().create_future() for _ in range(3))
    cancelled.cancel()
    resolve([told, told, cancelled, behind])
    assert (told.done(), behind.done()) == (True, True)


def test_a_thread_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody settles its call, long after its deadline: the loop that should is dead."""
    monkeypatch.setattr(call_module, "GRACE", 0.0)
    with pytest.raises(RuntimeError, match="I/O thread gives no sign of life"):
        Call(1, 0.0, None).wait()


async def test_every_call_is_settled_by_its_deadline_while_a_batch_hangs() -> None:
    """Those in it, those behind it, and those that come when all before them have been given up."""
    bench = Bench()
    early = [bench.call(0, 0.05)]
    await bench.entered.wait()
    early.append(bench.call(1, 0.05))
    assert [type(await outcome(call)) for call in early] == [Late, Late]
    assert type(await outcome(bench.call(2, 0.05))) is Late
    thread = Call(3, 0.05, None)
    bench.lane.submit(thread)
    with pytest.raises(Late):
        await asyncio.to_thread(thread.wait)
    bench.gate.set()
    assert await outcome(bench.call(4)) == 40
    # None was started, and none may be done after its caller has been told so.
    assert [job for batch in bench.batches for job in batch] == [4]


async def test_all_that_are_late_are_told_at_once_and_nothing_is_watched_any_more() -> None:
    """However many wait behind the batch that hangs."""
    bench = Bench()
    calls = [bench.call(0, 0.05)]
    await bench.entered.wait()
    calls += [bench.call(number, 0.05) for number in range(1, 4)]
    assert [type(await outcome(call)) for call in calls] == [Late] * 4
    assert bench.lane._timer is None
    await bench.lane.close(RuntimeError("closed"), 0)


async def test_a_late_call_knows_whether_it_was_started() -> None:
    """So that its error can say whether it may have been done."""
    entered = asyncio.Event()

    async def run(calls: Calls) -> None:
        assert all(call.start() for call in calls)
        entered.set()
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    lane: Lane[int] = Lane("test", loop, run, late=lambda call: Late(call.started))
    running = lane.submit(Call(0, 0.05, loop))
    await entered.wait()
    waiting = lane.submit(Call(1, 0.05, loop))
    errors = [await outcome(running), await outcome(waiting)]
    assert [getattr(error, "args", None) for error in errors] == [(True,), (False,)]
    await lane.close(RuntimeError("closed"), 0)


async def test_a_cancelled_caller_s_job_is_not_done() -> None:
    """Nobody waits for it any more."""
    bench = Bench()
    first, second = bench.call(1), bench.call(2)
    task = asyncio.ensure_future(result_of(second))
    await bench.entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.gate.set()
    assert await outcome(first) == 10
    assert bench.batches == [[1]]


async def test_closing_does_what_waits_and_fails_what_comes() -> None:
    """Whoever comes later gets the error that it was closed with."""
    bench = Bench()
    call = bench.call(1)
    bench.gate.set()
    await bench.lane.close(RuntimeError("closed"), 10)
    assert await outcome(call) == 10
    with pytest.raises(RuntimeError, match="closed"):
        bench.call(2)


async def test_a_closed_lane_remembers_nobody_who_calls() -> None:
    """The error is the same for all: their frames would pile up in its traceback."""
    bench = Bench()
    error = RuntimeError("closed")
    await bench.lane.close(error, 10)
    depths = set()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="closed"):
            bench.call(1)
        depths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(depths) == 1


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_closing_lasts_no_longer_than_what_waits(count: int) -> None:
    """It may take an hour, and does not where there is nothing left to do."""
    bench = Bench(batch=1)
    calls = [bench.call(number) for number in range(count)]
    bench.gate.set()
    await asyncio.wait_for(bench.lane.close(RuntimeError("closed"), 3600), 10)
    assert [await outcome(call) for call in calls] == [10 * number for number in range(count)]


async def test_what_closing_gave_up_is_not_done_any_more() -> None:
    """Its caller was told so."""
    bench = Bench()
    call = bench.call(1)
    await bench.entered.wait()
    await bench.lane.close(RuntimeError("closed"), 0)
    assert bench.lane._task is not None
    assert bench.lane._task.done()
    assert str(await outcome(call)) == "closed"
    assert bench.batches == []


async def test_closing_fails_what_takes_too_long() -> None:
    """Nobody is left waiting."""
    bench = Bench(batch=1)
    calls = [bench.call(number) for number in range(3)]
    await bench.entered.wait()
    await bench.lane.close(RuntimeError("closed"), 0.01)
    assert [str(await outcome(call)) for call in calls] == ["closed"] * 3


async def test_closing_that_is_given_up_leaves_nobody_waiting() -> None:
    """The node waits only so long for a batch that goes on although it was cancelled."""
    entered, refused, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn(_calls: Calls) -> None:
        entered.set()
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                refused.set()

    lane: Lane[int] = Lane("test", asyncio.get_running_loop(), stubborn, late=lambda call: Late(call.started))
    call = lane.submit(Call(1, 30, asyncio.get_running_loop()))
    await entered.wait()
    closing = asyncio.create_task(lane.close(RuntimeError("closed"), 0))
    await refused.wait()
    closing.cancel()
    try:
        assert str(await outcome(call)) == "closed"
    finally:
        over.set()


async def test_a_caller_that_is_held_up_until_the_lane_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told that the lane was closed, and not of its loop."""
    loop = asyncio.new_event_loop()
    lane: Lane[int] = Lane("test", loop, lambda _: asyncio.sleep(0), late=lambda call: Late(call.started))
    enter = lane._calls.enter

    def enter_late(call: Call[int]) -> object:
        gathering = enter(call)
        lane._calls.close(ValueError("closed"))
        loop.close()
        return gathering

    monkeypatch.setattr(lane._calls, "enter", enter_late)
    with pytest.raises(ValueError, match="closed"):
        lane.submit(Call(1, 30, None))


async def test_callers_of_other_loops_and_threads_get_their_results() -> None:
    """Each where it waits."""
    bench = Bench()
    results: list[object] = []

    async def elsewhere() -> None:
        results.append(await bench.lane.submit(Call(1, 30, asyncio.get_running_loop())))

    def plain() -> None:
        results.append(bench.lane.submit(Call(2, 30, None)).wait())

    threads = [threading.Thread(target=lambda: asyncio.run(elsewhere())), threading.Thread(target=plain)]
    for thread in threads:
        thread.start()
    bench.gate.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    assert sorted(results) == [10, 20]  # type: ignore[type-var]


async def test_a_caller_s_loop_that_is_closed_holds_nobody_up() -> None:
    """There is nobody left to tell."""
    bench = Bench()
    other = asyncio.new_event_loop()
    bench.lane.submit(Call(1, 30, other))
    other.close()
    call = bench.call(2)
    bench.gate.set()
    assert await outcome(call) == 20


async def test_callers_of_one_round_go_together() -> None:
    """Whoever is woken with the first to call gets its turn before the batch begins."""
    bench = Bench()
    bench.gate.set()

    async def call_twice(job: int) -> None:
        await bench.call(job)
        await bench.call(job)

    await asyncio.gather(*(call_twice(number) for number in range(ENOUGH - 1)))
    assert bench.batches == [list(range(ENOUGH - 1))] * 2


async def test_enough_callers_do_not_wait_for_the_rest_of_their_round(stopped: asyncio.AbstractEventLoop) -> None:
    """Otherwise hundreds would wait for the database, and then the database for them."""
    bench = Bench()
    for number in range(ENOUGH - 1):
        bench.lane.submit(Call(number, 30, stopped))
    await asyncio.sleep(0.05)
    assert not bench.entered.is_set()
    bench.lane.submit(Call(ENOUGH - 1, 30, stopped))
    await asyncio.wait_for(bench.entered.wait(), 10)


@pytest.mark.parametrize("caller", ["another loop", "a thread", "the same loop later", "who closes the lane"])
async def test_a_round_that_does_not_end_holds_nobody_up(
    stopped: asyncio.AbstractEventLoop, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was called in it is done together with what others call, or when the loop goes on, and once."""
    monkeypatch.setattr("channels_pg_sa.sending.lane.ROUND", 60)  # so that none of them waits for that
    bench = Bench()
    bench.gate.set()
    bench.lane.submit(Call(1, 30, stopped))
    others = [2]
    if caller == "another loop":
        assert await outcome(bench.call(2)) == 20
    elif caller == "a thread":
        assert await asyncio.to_thread(bench.lane.submit(Call(2, 30, None)).wait) == 20
    elif caller == "the same loop later":
        bench.lane.submit(Call(2, 30, stopped))
        await asyncio.to_thread(finish_round, stopped)
    else:
        others = []
        await bench.lane.close(RuntimeError("closed"), 10)
    await asyncio.to_thread(finish_round, stopped)
    await asyncio.wait_for(bench.entered.wait(), 10)
    await asyncio.sleep(0.01)
    assert bench.batches == [[1, *others]]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_caller_that_is_interrupted_while_others_gather(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt before or after it has seen to it that its batch begins: it is begun once."""
    bench = Bench()
    bench.gate.set()
    loop = asyncio.get_running_loop()
    call: Call[int] = Call(1, 30, loop)

    def interrupted(callback: Callable[[], None]) -> None:
        monkeypatch.undo()
        if moment == "after":
            loop.call_soon(callback)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "call_soon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.lane.submit(call)
    behind = bench.call(2)
    assert [await outcome(call), await outcome(behind)] == [10, 20]
    assert await outcome(bench.call(3)) == 30
    assert bench.batches == [[1, 2], [3]]


async def test_a_batch_that_lets_a_cancellation_through_does_not_end_the_lane() -> None:
    """Its calls fail, and the next are done."""

    async def run(calls: Calls) -> None:
        if calls[0].job == 0:
            raise asyncio.CancelledError

    loop = asyncio.get_running_loop()
    lane: Lane[int] = Lane("test", loop, run, late=lambda call: Late(call.started))
    assert isinstance(await outcome(lane.submit(Call(0, 30, loop))), RuntimeError)
    assert await outcome(lane.submit(Call(1, 30, loop))) is None


async def test_a_lone_call_is_begun_by_its_own_thread() -> None:
    """If the last batch was of one call, too; else calls are better gathered on the way to the loop."""
    bench = FastPath()
    await bench.alone()
    caller = threading.Thread(target=lambda: bench.lane.submit(Call(1, 30, None)))
    caller.start()
    caller.join()
    assert bench.threads[-1] is caller
    behind = [bench.call(number) for number in (2, 3)]
    assert [await bench.finish(), await bench.finish()] == [[1], [2, 3]]
    assert [await outcome(call) for call in behind] == [None, None]
    caller = threading.Thread(target=lambda: bench.lane.submit(Call(4, 30, None)))
    caller.start()
    caller.join()
    assert not bench.begun
    assert await bench.finish() == [4]
    assert bench.threads[-1] is threading.current_thread()


@pytest.mark.parametrize("is_open", [True, False])
async def test_what_the_fast_path_does_not_do_is_run_in_its_order(is_open: bool) -> None:
    """Refused at once, or given back later: before what has come meanwhile."""
    bench = FastPath()
    await bench.alone()
    bench.is_open = is_open
    calls = [bench.call(number) for number in (1, 2, 3)]
    if is_open:
        bench.is_open = False
        assert await bench.finish(done=False) == [1]
    assert [await outcome(call) for call in calls] == [None] * 3
    assert [job for batch in bench.run for job in batch] == [1, 2, 3]


async def test_what_came_behind_a_batch_that_was_run_is_begun_by_the_fast_path() -> None:
    """Which could not be had for one batch, and can be for the next."""
    begun: list[Over] = []

    def begin(_calls: Calls, over: Over) -> bool:
        if bench.entered.is_set():
            begun.append(over)
        return bench.entered.is_set()

    bench = Bench(fast_path=begin)
    first = bench.call(1)
    await bench.entered.wait()
    second = bench.call(2)
    bench.gate.set()
    assert await outcome(first) == 10
    begun.pop()(True)
    assert await outcome(second) is None
    assert bench.batches == [[1]]


async def test_the_next_batch_is_begun_before_the_callers_of_the_last_run() -> None:
    """They would hold it up."""
    bench = FastPath()
    told: list[list[list[int]]] = []
    await bench.alone()
    first = Call(1, 30, None, report=lambda _: told.append([[call.job for call in calls] for calls, _ in bench.begun]))
    bench.lane.submit(first)
    second = bench.call(2)
    assert await bench.finish() == [1]
    assert told == [[[2]]]
    assert await bench.finish() == [2]
    await second


async def test_what_the_fast_path_has_done_of_a_batch_is_not_done_again() -> None:
    """It told its caller, and gave the rest back."""
    bench = FastPath()
    calls = [bench.call(number) for number in (1, 2)]
    await bench.entered.wait()
    settle(calls[:1])
    assert await bench.finish(done=False) == [1, 2]
    assert [await outcome(call) for call in calls] == [None, None]
    assert bench.run == [[2]]


async def test_what_the_fast_path_did_not_do_was_not_begun() -> None:
    """A deadline that passes before it is run finds it certainly not done."""
    bench = Bench(fast_path=lambda _calls, _over: False)
    error = await outcome(bench.call(1, 0.05))
    assert isinstance(error, Late)
    assert error.args == (False,)


async def test_the_fast_path_is_not_given_what_nobody_waits_for() -> None:
    """A cancelled call is left out."""
    bench = FastPath()
    await bench.alone()
    first, second, third = (bench.call(number) for number in (1, 2, 3))
    task = asyncio.ensure_future(result_of(second))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [await bench.finish(), await bench.finish()] == [[1], [3]]
    assert [await outcome(first), await outcome(third)] == [None, None]


async def test_the_fast_path_is_not_asked_for_a_batch_that_nobody_waits_for() -> None:
    """It would begin a statement about nothing."""
    bench = FastPath()
    await bench.alone()
    first, second = bench.call(1), bench.call(2)
    task = asyncio.ensure_future(result_of(second))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await bench.finish() == [1]
    assert bench.begun == []
    assert await outcome(first) is None


async def test_a_deadline_holds_for_what_a_caller_began() -> None:
    """And the late end of it changes nothing."""
    bench = FastPath()
    await bench.alone()
    error = await outcome(bench.call(1, 0.05))
    assert isinstance(error, Late)
    assert error.args == (True,)
    behind = bench.call(2)
    assert [await bench.finish(), await bench.finish()] == [[1], [2]]
    assert await outcome(behind) is None


async def test_closing_waits_for_the_fast_path_and_not_for_ever() -> None:
    """What ends in time is done; what does not has the error that the lane was closed with."""
    bench = FastPath()
    await bench.alone()
    call = bench.call(1)
    closing = asyncio.create_task(bench.lane.close(RuntimeError("closed"), 10))
    await asyncio.sleep(0)
    await bench.finish()
    await closing
    assert await outcome(call) is None
    bench = FastPath()
    await bench.alone()
    calls = [bench.call(number) for number in (1, 2)]
    await bench.lane.close(RuntimeError("closed"), 0.01)
    assert [str(await outcome(call)) for call in calls] == ["closed"] * 2
    assert await bench.finish(done=False) == [1]
    await asyncio.sleep(0)
    assert bench.run == []


@pytest.mark.parametrize("moment", ["_take", "_fast_path", "put_back"])
async def test_a_caller_that_is_interrupted_does_not_end_the_lane(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a KeyboardInterrupt meets it, its own call has an outcome, and the next are done."""
    bench = FastPath()
    await bench.alone()
    bench.is_open = moment != "put_back"
    call: Call[int] = Call(1, 30, asyncio.get_running_loop())
    room = bench.lane._calls if moment == "put_back" else bench.lane
    original = getattr(room, moment)

    def interrupted(*arguments: object) -> object:
        monkeypatch.undo()
        if moment != "_take":
            original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(room, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.lane.submit(call)
    if moment == "_take":
        assert await bench.finish() == [1]
    error = await outcome(call)
    assert getattr(error, "args", None) == ((True,) if moment == "_fast_path" else None)
    bench.is_open = True
    behind = bench.call(2)
    if moment == "_fast_path":
        bench.begun.pop(0)
    assert await bench.finish() == [2]
    assert await outcome(behind) is None


async def test_a_fast_path_that_raises_fails_its_calls_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the lane's own loop there is nobody else to tell; the lane goes on."""
    bench = FastPath()
    await bench.alone()
    first, second = bench.call(1), bench.call(2)
    original = bench.lane._fast_path

    def broken(*_: object) -> bool:
        monkeypatch.setattr(bench.lane, "_fast_path", original)
        raise ValueError("broken")

    monkeypatch.setattr(bench.lane, "_fast_path", broken)
    assert await bench.finish() == [1]
    assert await outcome(first) is None
    assert isinstance(await outcome(second), ValueError)
    third = bench.call(3)
    assert await bench.finish() == [3]
    assert await outcome(third) is None
