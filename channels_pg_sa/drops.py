"""Says now and then what was dropped, and how often: one line for many, not one for each."""

from __future__ import annotations

import threading
import time
from collections import Counter

from .logs import Logger

logger = Logger(__name__)

PAUSE = 10.0
"""Seconds between two reports."""
NAMED = 5
"""How many kinds a report names; the rest is a number."""


class DropLog:
    """Count what is dropped, from any thread, and log it at most once in PAUSE seconds."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._reported = -PAUSE

    def add(self, reason: str, what: str, count: int = 1) -> None:
        """Count messages that were dropped: by reason for good, and by `what` they were for the next report."""
        with self._lock:
            self._totals[reason] += count
            self._counts[what] += count
        self.report()

    def over_capacity(self, channel: str, group: str, count: int) -> None:
        """Count messages to a group that a member had no room for; group "": those of the layer's own."""
        what = f"to group {group!r}" if group else "of the layer's own"
        self.add("over_capacity", f"{what}, for {channel}, which is over its capacity", count)

    @property
    def counters(self) -> Counter[str]:
        """How many have been dropped so far, by reason."""
        with self._lock:
            return Counter(self._totals)

    def report(self, *, at_once: bool = False) -> None:
        """Log what has been counted since the last report, if that is long enough ago."""
        with self._lock:
            now = time.monotonic()
            if not self._counts or not (at_once or now - self._reported >= PAUSE):
                return
            counts, self._counts = self._counts, Counter()
            self._reported = now
        parts = [f"{count:,} {what}" for what, count in counts.most_common(NAMED)]
        if len(counts) > NAMED:
            parts.append(f"and {len(counts) - NAMED:,} more such lines")
        logger.warning("Messages dropped: %s", "; ".join(parts))
