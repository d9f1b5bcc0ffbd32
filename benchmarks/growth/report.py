"""The findings about growth as tables: what was measured, the model, its check, and where it would lead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.growth.counters import Cost
from benchmarks.growth.crowd import Commits
from benchmarks.growth.model import TERMS, Costs, Load, fit, least_squares
from benchmarks.measures import median
from benchmarks.system import processor

PROCESSES = (10, 100, 1_000)
SOCKETS = 1_000
"""Sockets of each process."""
HEARTBEATS = (5.0, 20.0)
SENDERS = 8
"""Connections that send at the same time."""
RARE = HEARTBEATS[1]
"""The longest heartbeat that the default lease allows."""


@dataclass
class Findings:
    """What was measured on one server.

    Attributes:
        postgres: its version.
        sends: statements that send, with pauses; the model is fitted to these.
        held_out: others, which it is to predict.
        bare: a NOTIFY that nobody listens for, by the connections that listen to others.
        back_to_back: the same statements without pauses.
        together: the same when SENDERS send at once.
        crowded: those to groups with a thousand members in each process.
        large: with messages that do not fit into notifications.
        deletions: by the rows of a statement.
        fetching: a message that did not fit into its notification.
        lives: sent and deleted again, by the messages of a statement.
        rows: that came and went before a look at the table's size.
        room: that size in bytes, before a VACUUM and after as many rows again.
        vacuuming: for each dead row.
        beat: of one of `idle` idle layers.
        statements: of a heartbeat.
        idle: layers that were watched.
        interval: seconds that are to be between their heartbeats.
        living: messages to real layers, by the statement that sends one; and the connections that only listened.
        writers: transactions of a host, by what they did.
    """

    postgres: str
    sends: dict[Load, Cost] = field(default_factory=dict)
    held_out: dict[Load, Cost] = field(default_factory=dict)
    bare: dict[int, Cost] = field(default_factory=dict)
    back_to_back: dict[Load, Cost] = field(default_factory=dict)
    together: dict[Load, Cost] = field(default_factory=dict)
    crowded: dict[Load, Cost] = field(default_factory=dict)
    large: dict[Load, Cost] = field(default_factory=dict)
    deletions: dict[int, Cost] = field(default_factory=dict)
    fetching: Cost | None = None
    lives: dict[int, Cost] = field(default_factory=dict)
    rows: int = 0
    room: list[int] = field(default_factory=list)
    vacuuming: Cost | None = None
    beat: Cost | None = None
    statements: float = 0.0
    idle: int = 0
    interval: float = 0.0
    living: dict[Load, Cost] = field(default_factory=dict)
    writers: dict[str, Commits] = field(default_factory=dict)

    def costs(self) -> Costs:
        """Return the model of all that was measured."""
        sending = fit(list(self.sends), [cost.cpu for cost in self.sends.values()])
        rows = [(1.0, float(count)) for count in self.deletions]
        statement, row = least_squares(rows, [cost.cpu for cost in self.deletions.values()])
        model = Costs(sending, (statement, row), 0.0, 0.0)
        if self.beat is None:
            return model
        return replace(model, beat=self.beat.cpu, beats=self.beat.per_second * self.interval / self.idle)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns but the first are numbers."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def markdown(found: Findings) -> str:
    """Return the whole report."""
    costs = found.costs()
    parts = [
        f"PostgreSQL {found.postgres} on {processor()}. Times are microseconds of CPU of the whole server.",
        *_section("Listening connections", _listeners(found)),
        *_section("Groups: processes, members, sizes", _groups(found)),
        *_section("Messages in a statement", _batches(found)),
        *_section("Deleting and fetching", _reading(found)),
        *_section("WAL", _wal(found)),
        *_section("Room", _room(found)),
        *_section("Transactions of a host", _writers(found)),
        *_section("Heartbeats", _beats(found)),
        *_section("Model", _model(costs)),
        *_section("Check", check(found, costs)),
        *_section("Extrapolation, not measured", extrapolation(costs)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, body: str) -> tuple[str, str]:
    return f"### {title}", body


def _listeners(found: Findings) -> str:
    direct = [load for load in found.sends if not load.group and load.messages == 1]
    rows = [
        (
            f"{load.listeners}",
            whole(found.bare[load.listeners].cpu) if load.listeners in found.bare else "",
            *(whole(costs[load].cpu) if load in costs else "" for costs in (found.sends, found.back_to_back)),
            whole(found.together[load].cpu) if load in found.together else "",
        )
        for load in sorted(direct, key=lambda load: load.listeners)
    ]
    heads = ["NOTIFY alone", "a send", "back to back", f"{SENDERS} senders at once"]
    return table(["listening connections", *heads], rows)


def _groups(found: Findings) -> str:
    single = {load: cost for load, cost in {**found.sends, **found.large}.items() if load.group and load.messages == 1}
    rows = [
        (
            f"{load.receivers}",
            f"{load.listeners}",
            f"{load.size:,}",
            whole(cost.cpu),
            whole(found.crowded[load].cpu) if load in found.crowded else "",
        )
        for load, cost in sorted(single.items(), key=lambda pair: (pair[0].size, pair[0].receivers))
    ]
    heads = ["processes with members", "listening connections", "bytes", "a send", "with 1,000 members in each process"]
    return table(heads, rows)


def _batches(found: Findings) -> str:
    batched = {replace(load, messages=1) for load in found.sends if load.messages > 1}
    rows = [
        (str(load), whole(found.sends[load].cpu), fine(found.sends[load].cpu / load.messages))
        for load in sorted(found.sends, key=lambda load: (load.group, load.listeners, load.size, load.messages))
        if load.messages > 1 or load in batched
    ]
    return table(["statement", "each", "a message of it"], rows)


def _reading(found: Findings) -> str:
    rows = [(f"delete {count}", whole(cost.cpu), fine(cost.cpu / count)) for count, cost in found.deletions.items()]
    if found.fetching:
        rows.append(("fetch 1 of 32,000 bytes", whole(found.fetching.cpu), whole(found.fetching.cpu)))
    return table(["rows", "a statement", "a row"], rows)


def _wal(found: Findings) -> str:
    rows = [(f"{count}", fine(cost.wal), fine(cost.wal / count)) for count, cost in found.lives.items()]
    return table(["messages in a statement", "bytes, sent and deleted", "for each message"], rows)


def _room(found: Findings) -> str:
    rows = [
        (f"after {found.rows * (number + 1):,} messages", f"{size / 1e6:.1f}", fine(size / found.rows))
        for number, size in enumerate(found.room)
    ]
    if found.vacuuming:
        rows.append(("VACUUM, µs for each dead row", "", fine(found.vacuuming.cpu)))
    return table(["", "MB", "for each of the dead rows"], rows)


def _writers(found: Findings) -> str:
    rows = [
        (what, "" if done.flushes is None else f"{done.flushes:.2f}", whole(done.per_second))
        for what, done in found.writers.items()
    ]
    return table(["8 writers, each transaction", "WAL flushes a commit", "commits/s"], rows)


def _beats(found: Findings) -> str:
    beat = found.beat
    if beat is None:
        return "Not measured."
    cells = [f"{found.costs().beats:.2f}", f"{found.statements:.2f}", whole(beat.cpu), fine(beat.wal)]
    heads = ["heartbeats of each in an interval", "statements of a heartbeat", "CPU of a heartbeat", "bytes of WAL"]
    return table(["idle processes", *heads], [(str(found.idle), *cells)])


def _model(costs: Costs) -> str:
    statement, row = costs.deletion
    rows = [(name, fine(cost)) for name, cost in zip(TERMS, costs.sending.costs, strict=True)]
    rows += [("a statement that deletes", fine(statement)), ("… for each row", fine(row))]
    return table(["", "µs"], [*rows, ("a heartbeat", fine(costs.beat))])


def check(found: Findings, costs: Costs) -> str:
    """Return what the model says of what it was not fitted to, and how far it is off where it was."""
    rows = [(str(load), costs.sending.predict(load), cost.cpu) for load, cost in found.held_out.items()]
    rows += [
        (f"{load}: real layers, deletions and heartbeats too", _alive(load, cost, costs), cost.cpu)
        for load, cost in found.living.items()
    ]
    off = [abs(costs.sending.predict(load) / cost.cpu - 1.0) for load, cost in found.sends.items()]
    cells = [(what, whole(said), whole(was), f"{said / was - 1.0:+.0%}") for what, said, was in rows]
    usual = f"Where it was fitted, the model is {median(off) or 0.0:.0%} off (median), {max(off):.0%} at worst."
    return f"{usual}\n\n{table(['held out', 'predicted', 'measured', 'off'], cells)}"


def _alive(load: Load, cost: Cost, costs: Costs) -> float:
    """Return what a message is to cost with its deletions and its share of the receivers' heartbeats."""
    beats = load.receivers * costs.beats / RARE / cost.per_second
    return costs.message(load) + beats * costs.beat


def extrapolation(costs: Costs) -> str:
    """Return what sending would cost, and how much of it one core of the server would carry, with many processes."""
    rows = [("sockets", *(f"{processes * SOCKETS:,}" for processes in PROCESSES))]
    for interval in HEARTBEATS:
        idle = [costs.idle_cores(processes, interval) for processes in PROCESSES]
        rows.append((f"cores for heartbeats every {interval:g} s alone", *map(about, idle)))
    for what, loads in _kinds().items():
        spent = [costs.message(load, deleted) for load, deleted in loads]
        rows.append((f"{what}: µs", *map(about, spent)))
        rows.append((f"{what}: a second, for each core", *(about(1e6 / each) for each in spent)))
    return table(["", *(f"{processes:,} processes" for processes in PROCESSES)], rows)


def _kinds() -> dict[str, list[tuple[Load, float]]]:
    """Return statements for each number of processes, each with how many of its rows a receiver deletes at a time."""
    return {
        "a message to one channel": [(Load(count, 1, group=False), 1.0) for count in PROCESSES],
        "… 64 in a statement, to many processes": [
            (Load(count, min(64, count), group=False, messages=64), max(1.0, 64 / count)) for count in PROCESSES
        ],
        "a broadcast to all processes": [(Load(count, count, group=True), 1.0) for count in PROCESSES],
        "… 16 in a statement": [(Load(count, count, group=True, messages=16), 16.0) for count in PROCESSES],
    }


def whole(value: float) -> str:
    """Return a number without decimals."""
    return f"{value:,.0f}"


def fine(value: float) -> str:
    """Return a number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def about(value: float) -> str:
    """Return a number with two digits that count: what is extrapolated is no more exact."""
    digits = 1 - math.floor(math.log10(value)) if value > 0.0 else 0
    return f"{round(value, digits):,.{max(0, digits)}f}"
