"""The check's report: one line a step, and how long messages took."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Row(NamedTuple):
    """One step: what it was, whether it went well, what was seen, and its seconds."""

    name: str
    well: bool
    seen: str
    seconds: float


def print_summary(rows: Sequence[Row], steps: int, what: str) -> bool:
    """Print the table; return whether anything failed."""
    width = max(len(row.name) for row in rows)
    print(f"\nChecked {what}\n")
    for row in rows:
        print(f"  {'ok  ' if row.well else 'FAIL'}  {row.name:<{width}}  {row.seconds:5.1f} s  {row.seen}")
    passed = sum(row.well for row in rows)
    left = f", {steps - len(rows)} not run" if steps > len(rows) else ""
    print(f"\n{passed} of {steps} steps passed{left}.", flush=True)
    return passed < steps


def timings(milliseconds: Sequence[float]) -> str:
    """Return the middle, the slow end and the number of some times as words."""
    if len(milliseconds) < 2:
        return "nothing measured"
    slow = statistics.quantiles(milliseconds, n=20, method="inclusive")[-1]
    middle = statistics.median(milliseconds)
    return f"{middle:.1f} ms median, {slow:.1f} ms 95th percentile, over {len(milliseconds):,} deliveries"
