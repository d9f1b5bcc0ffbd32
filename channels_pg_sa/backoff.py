"""The delay before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Grow delays exponentially up to a cap, with jitter, so that a restarted server is not stormed.

    Args:
        first: the first delay, in seconds.
        cap: the longest delay, in seconds.
    """

    first: float = 0.05
    cap: float = 2.0
    _attempts: int = field(default=0, init=False)

    def next(self) -> float:
        """Return the seconds to wait before the next attempt: between half and all of the current step."""
        step: float = min(self.cap, self.first * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        return step * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Begin again with the first delay."""
        self._attempts = 0
