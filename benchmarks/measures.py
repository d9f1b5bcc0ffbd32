"""The arithmetic of a benchmark: percentiles, what was lost or doubled, medians over repetitions, paired ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


class Tally:
    """Count each numbered message once, and remember how often one came again.

    A byte for each number is the cheapest set there is: adding costs the same for every peer and no peer's rate is
    bounded by the counting.
    """

    __slots__ = ("_seen", "doubled", "unique")

    def __init__(self, limit: int) -> None:
        """Make room for the numbers 0 to `limit` - 1."""
        self._seen = bytearray(limit)
        self.unique = 0
        self.doubled = 0

    def add(self, number: int) -> bool:
        """Count `number` and return True when it is the first of its kind; raise IndexError outside the limit."""
        if self._seen[number]:
            self.doubled += 1
            return False
        self._seen[number] = 1
        self.unique += 1
        return True

    def numbers(self) -> bytes:
        """Return one byte for each number: 1 if it was counted."""
        return bytes(self._seen)


def merge_tallies(seen: Iterable[bytes]) -> tuple[int, int]:
    """Return (unique, doubled) over competing readers, each of which counted the numbers it got."""
    combined: bytearray = bytearray()
    total = 0
    for numbers in seen:
        total += sum(numbers)
        combined.extend(bytes(max(0, len(numbers) - len(combined))))
        for position, value in enumerate(numbers):
            if value:
                combined[position] = 1
    unique = sum(combined)
    return unique, total - unique


def lost(accepted: int, fan_out: int, unique: int) -> int:
    """Return how many deliveries never came of `accepted` sends to `fan_out` receivers each.

    A send that raised and was delivered all the same can bring more than was accepted; that is no loss.
    """
    return max(0, accepted * fan_out - unique)


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return the nearest-rank percentile of values in ascending order; raise ValueError when there are none."""
    if not ordered:
        raise ValueError("no values")
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def milliseconds(values: Iterable[float], fraction: float) -> float | None:
    """Return a percentile of `values` (seconds, any order) in milliseconds, or None when there are none."""
    ordered = sorted(values)
    return percentile(ordered, fraction) * 1000.0 if ordered else None


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are there, or None when none is."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def paired_ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """Return the median of ours / theirs, repetition by repetition.

    Repetitions of different peers are interleaved, so a pair saw the same weather on the machine: the median of the
    ratios is steadier than the ratio of the medians.
    """
    pairs = zip(ours, theirs, strict=False)
    return median(mine / other for mine, other in pairs if mine is not None and other)


def per_thousand(amount: float, count: int) -> float | None:
    """Return `amount` for each 1,000 of `count`, or None when nothing was counted."""
    return amount * 1000.0 / count if count else None
