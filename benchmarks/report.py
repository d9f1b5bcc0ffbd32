"""Tables for people (Markdown) and everything for programs (JSON)."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks import goals
from benchmarks.measures import median
from benchmarks.peers import OURS, PEERS
from benchmarks.results import Result
from benchmarks.runner import Budget, Outcome
from benchmarks.scenarios import Scenario
from benchmarks.system import processor


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _fine(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    cell: Callable[[Result], str]


_COLUMNS = (
    _Column("delivered/s", lambda result: _whole(result.rate)),
    _Column("p50 ms", lambda result: _fine(result.p50_ms)),
    _Column("p99 ms", lambda result: _fine(result.p99_ms)),
    _Column("last member p50 ms", lambda result: _fine(result.last_p50_ms)),
    _Column("last member p99 ms", lambda result: _fine(result.last_p99_ms)),
    _Column("call p50 ms", lambda result: _fine(result.call_p50_ms)),
    _Column("bytes each", lambda result: _whole(result.bytes_each)),
    _Column("of empty calls", lambda result: _fine(result.of_empty_calls)),
    _Column("lost", lambda result: _whole(result.lost)),
    _Column("unread", lambda result: _whole(result.unread)),
    _Column("doubled", lambda result: _whole(result.doubled)),
    _Column("refused", lambda result: _whole(result.refused)),
    _Column("CPU s/1,000 (clients)", lambda result: _fine(result.client_cpu)),
    _Column("CPU s/1,000 (server)", lambda result: _fine(result.server_cpu)),
    _Column("connections", lambda result: _whole(result.connections)),
)
_ALWAYS = frozenset({"delivered/s", "p50 ms", "p99 ms", "lost", "doubled"})


def markdown(scenarios: Sequence[Scenario], outcome: Outcome, budget: Budget) -> str:
    """Return the report: the machine, the goals, and a table for each scenario."""
    parts = [_head(outcome, budget), goals.table(outcome)]
    parts += [_table(scenario, outcome) for scenario in scenarios]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(outcome: Outcome, budget: Budget) -> str:
    lines = [
        (
            f"Measured on {processor()}, Python {platform.python_version()}: {budget.repetitions} repetition(s) of"
            f" {budget.seconds:g} s, interleaved over the layers; medians, and losses added up."
        ),
        "",
        *_noise(outcome),
        *(f"- {name} {found}" for name, found in _versions(outcome).items()),
        *(f"- {peer} took no part: {reason}" for peer, reason in outcome.absent.items()),
    ]
    if outcome.unfinished:
        lines.append("- The time for the run was over before all of it was measured.")
    return "\n".join(lines)


def _noise(outcome: Outcome) -> list[str]:
    others = [result.other_cores for results in outcome.results.values() for result in results]
    usual, worst = median(others), max((cores for cores in others if cores is not None), default=0.0)
    if usual is None:
        return []
    return [f"Other programs kept {usual:.2f} cores busy (median over the cases; {worst:.2f} in the worst).", ""]


def _table(scenario: Scenario, outcome: Outcome) -> str:
    rows = [row for peer in PEERS if (row := outcome.summary(scenario.name, peer)) is not None]
    good = [row for row in rows if row.error is None]
    columns = [column for column in _COLUMNS if column.head in _ALWAYS or any(_shows(column, row) for row in good)]
    ratios = [outcome.ratio(scenario.name, scenario.metric, row.peer) for row in good]
    lines = [f"### {scenario.title} (`{scenario.name}`)", ""]
    if good:
        heads = ["layer", *(column.head for column in columns), f"ours / theirs ({scenario.metric})"]
        lines += [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        for row, ratio in zip(good, ratios, strict=True):
            cells = [row.peer, *(column.cell(row) for column in columns), _fine(ratio) if row.peer != OURS else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_remarks(scenario, rows, outcome)])


def _shows(column: _Column, row: Result) -> bool:
    return column.cell(row) not in ("", "0")


def _remarks(scenario: Scenario, rows: Sequence[Result], outcome: Outcome) -> list[str]:
    remarks = [f"- {row.peer}: {note}" for row in rows for note in ([row.error] if row.error else row.notes)]
    refused = [(peer, why) for (name, peer), why in outcome.refused.items() if name == scenario.name]
    remarks += [f"- {peer} {why}" for peer, why in refused if "floor" not in why]
    return ["", *remarks] if remarks else []


def document(scenarios: Sequence[Scenario], outcome: Outcome, budget: Budget) -> str:
    """Return every single result as JSON."""
    found: dict[str, Any] = {
        "machine": processor(),
        "python": platform.python_version(),
        "versions": _versions(outcome),
        "budget": asdict(budget),
        "absent": outcome.absent,
        "scenarios": {scenario.name: scenario.title for scenario in scenarios},
        "results": [asdict(result) for results in outcome.results.values() for result in results],
    }
    return json.dumps(found, indent=1) + "\n"


def _versions(outcome: Outcome) -> dict[str, str]:
    names = (
        "channels",
        "channels_redis",
        "channels-nats",
        "channels_postgres",
        "channels_rabbitmq",
        "psycopg",
        "redis",
        "uvicorn",
        "websockets",
    )
    found = {"PostgreSQL": outcome.postgres} if outcome.postgres else {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
