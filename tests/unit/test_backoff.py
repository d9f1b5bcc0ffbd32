"""The delay before the next attempt."""

from __future__ import annotations

from channels_pg_sa.backoff import Backoff


def test_delays_double_up_to_the_cap_with_jitter() -> None:
    """Each is between half and all of its step, and no two waiters keep step."""
    backoff = Backoff(first=1.0, cap=5.0)
    for step in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert step / 2 <= backoff.next() <= step
    assert len({backoff.next() for _ in range(20)}) > 1


def test_it_begins_again() -> None:
    """After a success."""
    backoff = Backoff(first=1.0, cap=100.0)
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 1.0


def test_an_outage_may_last_for_ever() -> None:
    """No number overflows."""
    backoff = Backoff()
    assert all(0 < backoff.next() <= backoff.cap for _ in range(5000))
