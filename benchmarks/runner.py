"""The whole run: scenarios one after the other, each interleaved over the peers that are here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.coordinator import Case
from benchmarks.measures import paired_ratio
from benchmarks.peers import OURS, Peer
from benchmarks.results import Result, summarise
from benchmarks.scenarios import Scenario
from benchmarks.servers import servers

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long senders send in a case (seconds), how often a case is repeated, and when the whole run has to stop."""

    seconds: float
    repetitions: int
    minutes: float


@dataclass
class Outcome:
    """Every result by scenario and peer, and why a peer is missing."""

    results: dict[tuple[str, str], list[Result]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    postgres: str = ""
    unfinished: bool = False

    def summary(self, scenario: str, peer: str) -> Result | None:
        """Return the medians of a peer in a scenario, or None when it took no part."""
        results = self.results.get((scenario, peer))
        return summarise(results) if results else None

    def ratio(
        self, scenario: str, metric: str, peer: str, *, ours: str = OURS, beside: str | None = None
    ) -> float | None:
        """Return ours / theirs for `metric`, paired by repetition; theirs of the scenario `beside` if that is given."""
        mine = [getattr(result, metric) for result in self.results.get((scenario, ours), [])]
        theirs = [getattr(result, metric) for result in self.results.get((beside or scenario, peer), [])]
        return paired_ratio(mine, theirs)


def run(scenarios: Sequence[Scenario], peers: Sequence[Peer], budget: Budget, say: Say) -> Outcome:
    """Measure `peers` in `scenarios` and return what was seen; no failure of a peer ends the run."""
    outcome = Outcome()
    stop_at = time.monotonic() + budget.minutes * 60.0
    with servers(peers, outcome.absent) as (urls, postgres):
        outcome.postgres = postgres
        for peer, reason in outcome.absent.items():
            say(f"{peer} takes no part: {reason}")
        present = [each for each in peers if each.name in urls]
        for scenario in scenarios:
            _run_scenario(scenario, present, urls, budget, stop_at, outcome, say)
    return outcome


def _run_scenario(
    scenario: Scenario,
    peers: Sequence[Peer],
    urls: dict[str, str],
    budget: Budget,
    stop_at: float,
    outcome: Outcome,
    say: Say,
) -> None:
    say(f"{scenario.name}: {scenario.title}")
    for repetition in range(budget.repetitions):
        for peer in peers:
            key = (scenario.name, peer.name)
            if (reason := peer.refusal(scenario)) is not None:
                outcome.refused[key] = reason
                continue
            if _hopeless(outcome.results.get(key, [])):
                continue
            if time.monotonic() > stop_at:
                outcome.unfinished = True
                return
            result = Case(scenario, peer, urls[peer.name], budget.seconds).run()
            outcome.results.setdefault(key, []).append(result)
            say(f"  {repetition + 1} {_line(result)}")


def _hopeless(results: Sequence[Result]) -> bool:
    """Two failures in a row are enough: each may have taken a minute."""
    return len(results) >= 2 and all(result.error for result in results[-2:])


def _line(result: Result) -> str:
    if result.error:
        return f"{result.peer:24} failed: {result.error}"
    numbers = [
        f"{result.rate:10,.0f}/s" if result.rate else " " * 12,
        f"p50 {result.p50_ms:9.2f} ms  p99 {result.p99_ms:9.2f} ms"
        if result.p50_ms is not None and result.p99_ms
        else "",
        f"last {result.last_p50_ms:.2f} ms" if result.last_p50_ms else "",
        f"{result.bytes_each:,.0f} B each" if result.bytes_each else "",
        f"lost {result.lost:.0f}" if result.lost else "",
        f"doubled {result.doubled:.0f}" if result.doubled else "",
        f"unread {result.unread:.0f}" if result.unread else "",
        f"refused {result.refused:.0f}" if result.refused else "",
        f"cpu {result.client_cpu:.3f}+{result.server_cpu or 0.0:.3f}" if result.client_cpu is not None else "",
        f"conn {result.connections:.0f}",
        *result.notes,
    ]
    return f"{result.peer:24} " + "  ".join(number for number in numbers if number)
