"""The database's time, told between two looks at it by this process's monotonic clock."""

from __future__ import annotations

import math
import time

DRIFT = 1e-4
"""Seconds that two clocks may part from each other in a second."""


class Clock:
    """Keep the best estimate of the database's clock.

    A look at it is as exact as the round trip was short, and gets worse with age; a slow answer does not spoil a good
    estimate. But if both cannot be true, the clock was set, or another server has taken over: the new look counts.
    """

    def __init__(self) -> None:
        self._offset = -math.inf
        self._error = math.inf
        self._looked = -math.inf

    def observe(self, before: float, after: float, now: float) -> None:
        """Take a look at the database's clock into account.

        Args:
            before: monotonic time when it was asked.
            after: monotonic time when it had answered.
            now: its answer, Unix time.
        """
        error = (after - before) / 2
        offset = now - (before + after) / 2
        doubt = self._error + (after - self._looked) * DRIFT
        if error <= doubt or abs(offset - self._offset) > error + doubt:
            self._offset = offset
            self._error = error
            self._looked = after

    def now(self) -> float:
        """Return the Unix time by the database's clock; minus infinity until somebody has looked: nothing is late."""
        return time.monotonic() + self._offset
