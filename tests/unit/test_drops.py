"""One line for many dropped messages."""

from __future__ import annotations

import logging
import threading

import pytest

from channels_pg_sa.drops import NAMED, PAUSE, DropLog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, as a list of one; a machine that has just booted."""
    now = [0.0]
    monkeypatch.setattr("channels_pg_sa.drops.time.monotonic", lambda: now[0])
    return now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged since the last call."""
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


@pytest.mark.usefixtures("clock")
def test_the_first_drop_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """As a warning, with the channel, the group and the number."""
    drops = DropLog()
    drops.over_capacity("c", "g", 3)
    assert caplog.records[0].levelno == logging.WARNING
    assert lines(caplog) == ["Messages dropped: 3 to group 'g', for c, which is over its capacity"]


@pytest.mark.usefixtures("clock")
def test_a_message_of_the_layers_own_is_told_without_a_group(caplog: pytest.LogCaptureFixture) -> None:
    """Such as on_reconnect's."""
    drops = DropLog()
    drops.over_capacity("c", "", 1)
    assert lines(caplog) == ["Messages dropped: 1 of the layer's own, for c, which is over its capacity"]


def test_the_next_drops_are_told_together_after_a_pause(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    """By report(), or by the next drop; the most frequent kind first."""
    drops = DropLog()
    drops.add("why", "first")
    lines(caplog)
    for number in range(1500):
        drops.add("why", "many" if number else "one")
    clock[0] += PAUSE - 0.1
    drops.report()
    assert lines(caplog) == []
    clock[0] += 0.1
    drops.report()
    assert lines(caplog) == ["Messages dropped: 1,499 many; 1 one"]
    drops.report(at_once=True)
    assert lines(caplog) == [], "nothing is told twice"


@pytest.mark.usefixtures("clock")
def test_a_report_at_once_waits_for_no_pause(caplog: pytest.LogCaptureFixture) -> None:
    """The last word of a layer that closes."""
    drops = DropLog()
    drops.add("why", "first")
    drops.add("why", "last")
    drops.report(at_once=True)
    assert lines(caplog) == ["Messages dropped: 1 first", "Messages dropped: 1 last"]


@pytest.mark.usefixtures("clock")
def test_of_many_kinds_only_some_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """The rest is a number."""
    drops = DropLog()
    drops.add("why", "first")
    lines(caplog)
    for number in range(NAMED + 7):
        drops.add("why", f"kind {number}", 100 - number)
    drops.report(at_once=True)
    (line,) = lines(caplog)
    assert "100 kind 0;" in line
    assert f"kind {NAMED}" not in line
    assert line.endswith("and 7 more such lines")


@pytest.mark.usefixtures("clock")
def test_counters_lose_nothing_between_threads() -> None:
    """They stay when a report has been made."""
    drops = DropLog()

    def work() -> None:
        for _ in range(2000):
            drops.add("why", "what", 2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drops.counters == {"why": 16_000}


def test_as_many_kinds_as_are_named_leave_no_rest(caplog: pytest.LogCaptureFixture) -> None:
    """Not "and 0 more"."""
    drops = DropLog()
    drops.add("why", "first")
    caplog.clear()
    for number in range(NAMED):
        drops.add("why", f"kind {number}", 100 - number)
    drops.report(at_once=True)
    (record,) = caplog.records
    assert record.getMessage().endswith(f"; {101 - NAMED} kind {NAMED - 1}")
