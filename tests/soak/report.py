"""The table that a soak ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from .balance import Balance
from .stage import Outcome

MB = 1_000_000


def table(outcome: Outcome) -> str:
    """Return the outcome as a Markdown table with two lines about the rest."""
    columns = [each.name for each in fields(Balance)]
    rows = [["to", *columns, "connections", "memory"]]
    total = sum(outcome.balances.values(), Balance())
    before, after = outcome.memory
    rest = [f"{outcome.connections} of {outcome.processes} processes", f"{before / MB:.0f} → {after / MB:.0f} MB"]
    for kind, each in (*outcome.balances.items(), ("all", total)):
        numbers = [f"{getattr(each, name):,}" for name in columns]
        rows.append([kind, *numbers, *(rest if kind == "all" else ("", ""))])
    faults = ", ".join(f"{count:,} {name}" for name, count in sorted(outcome.faults.items())) or "no faults"
    summary = (
        f"{faults}; {total.delivered / outcome.seconds:,.0f} deliveries/s; table {outcome.table / MB:.1f} MB;"
        f" {outcome.left} connections left, {outcome.crashed} processes crashed."
    )
    return "\n".join([*aligned(rows), "", summary])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return [line(rows[0]), rule, *map(line, rows[1:])]
