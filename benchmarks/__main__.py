"""python -m benchmarks: measure, then write a table, the raw results and the plots."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import PEERS, Peer
from benchmarks.plots import chart
from benchmarks.report import document, markdown
from benchmarks.runner import Budget, Outcome, run
from benchmarks.scenarios import SCENARIOS, Scenario

_FULL = Budget(seconds=3.0, repetitions=3, minutes=90.0)
_QUICK = Budget(seconds=1.0, repetitions=1, minutes=15.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = command_line().parse_args(arguments)
    scenarios = _chosen_scenarios(options.scenario, quick=options.quick)
    if options.list:
        _list(scenarios)
        return 0
    limits = budget(options)
    outcome = run(scenarios, _chosen_peers(options.peer), limits, _say)
    table = markdown(scenarios, outcome, limits)
    if options.out is not None:
        _write(options.out, scenarios, outcome, limits, table)
    print(table)
    return 0


def budget(options: argparse.Namespace) -> Budget:
    """Return what the run may take; of the default time each repetition has its share."""
    base = _QUICK if options.quick else _FULL
    repetitions = options.repeat or base.repetitions
    minutes = options.minutes or base.minutes * repetitions / base.repetitions
    return Budget(options.seconds or base.seconds, repetitions, minutes)


def command_line() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scenario", action="append", metavar="NAME", help="part of a scenario's name; repeatable")
    parser.add_argument("--peer", action="append", metavar="NAME", help="part of a layer's name; repeatable")
    parser.add_argument("--quick", action="store_true", help="one short repetition, without the longest scenarios")
    parser.add_argument("--seconds", type=float, help="how long senders send in each case")
    parser.add_argument("--repeat", type=int, help="how often each case is measured")
    parser.add_argument("--minutes", type=float, help="stop the run after this time (else it grows with --repeat)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.md, results.json and *.svg there")
    parser.add_argument("--list", action="store_true", help="list scenarios and layers, and end")
    return parser


def _chosen_scenarios(wanted: Sequence[str] | None, *, quick: bool) -> list[Scenario]:
    if wanted:
        names = _matching(wanted, [scenario.name for scenario in SCENARIOS])
        return [scenario for scenario in SCENARIOS if scenario.name in names]
    return [scenario for scenario in SCENARIOS if scenario.quick or not quick]


def _chosen_peers(wanted: Sequence[str] | None) -> list[Peer]:
    return [PEERS[name] for name in PEERS if not wanted or name in _matching(wanted, list(PEERS))]


def _matching(wanted: Sequence[str], names: Sequence[str]) -> set[str]:
    """Return the names that are wanted; a wish that is no whole name stands for all names it is part of."""
    return {name for wish in wanted for name in names if name == wish or (wish not in names and wish in name)}


def _list(scenarios: Sequence[Scenario]) -> None:
    for scenario in scenarios:
        print(f"{scenario.name:24} {scenario.title}")
    for peer in PEERS.values():
        print(f"{peer.name:24} {peer.__doc__}")


def _write(out: Path, scenarios: Sequence[Scenario], outcome: Outcome, budget: Budget, table: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(table)
    (out / "results.json").write_text(document(scenarios, outcome, budget))
    for scenario in scenarios:
        rows = [row for peer in PEERS if (row := outcome.summary(scenario.name, peer)) is not None]
        if any(row.error is None for row in rows):
            (out / f"{scenario.name}.svg").write_text(chart(scenario.title, scenario.metric, rows))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
