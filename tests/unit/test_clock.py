"""The database's time as a process reckons it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_pg_sa.receiving.clock import DRIFT, Clock


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set this process's own clock."""

    def set_to(seconds: float) -> None:
        monkeypatch.setattr("channels_pg_sa.receiving.clock.time.monotonic", lambda: seconds)

    set_to(100.0)
    return set_to


def test_nothing_is_late_as_long_as_nobody_has_looked() -> None:
    """The time is before every other then."""
    assert Clock().now() == -math.inf


def test_between_looks_it_goes_on(monotonic: Callable[[float], None]) -> None:
    """The answer is taken for the time halfway through the question."""
    clock = Clock()
    clock.observe(98.0, 100.0, 5000.0)
    assert clock.now() == 5001.0
    monotonic(110.0)
    assert clock.now() == 5011.0


def test_a_slow_answer_does_not_spoil_a_good_estimate(monotonic: Callable[[float], None]) -> None:
    """Until the estimate is so old that the answer is better; a faster answer is always better."""
    clock = Clock()
    clock.observe(99.9, 100.0, 5000.0)
    good = clock.now()
    clock.observe(100.0, 101.0, 5000.7)  # may be off by half a second
    assert clock.now() == good
    clock.observe(101.0, 101.02, 5001.1)
    assert clock.now() == pytest.approx(5000.09)
    later = 101.02 + 0.5 / DRIFT
    monotonic(later)
    clock.observe(later - 1.0, later, 5001.09 + 0.5 / DRIFT)
    assert clock.now() == pytest.approx(5001.59 + 0.5 / DRIFT)


@pytest.mark.usefixtures("monotonic")
def test_a_clock_that_was_set_is_believed_at_once() -> None:
    """After a failover another clock rules: a look that contradicts the estimate replaces it, however slow it was."""
    clock = Clock()
    clock.observe(99.99, 100.0, 5000.0)
    clock.observe(100.0, 102.0, 4000.0)
    assert clock.now() == 3999.0


@pytest.mark.usefixtures("monotonic")
def test_a_look_is_as_exact_as_its_own_round_trip() -> None:
    """However exact the one was that it replaced: a better one that follows is believed, though they do not differ."""
    clock = Clock()
    clock.observe(99.99, 100.0, 5000.0)
    clock.observe(100.0, 102.0, 4000.0)
    clock.observe(102.0, 102.5, 4001.35)
    assert clock.now() == pytest.approx(3999.1)


@given(
    offset=st.floats(-1e6, 1e6),
    looks=st.lists(
        st.tuples(st.floats(0, 100, allow_subnormal=False), st.floats(0, 1, allow_subnormal=False), st.floats(0, 1)),
        min_size=1,
    ),
)
def test_the_estimate_is_as_good_as_it_claims(offset: float, looks: list[tuple[float, float, float]]) -> None:
    """Whenever in its round trip the database may have looked at its clock."""
    clock, time = Clock(), 0.0
    best = math.inf
    for pause, trip, share in looks:
        best += pause * DRIFT
        time += pause
        clock.observe(time, time + trip, time + trip * share + offset)
        time += trip
        best = min(best + trip * DRIFT, trip / 2)
        assert abs(clock._offset - offset) <= best + 1e-6
