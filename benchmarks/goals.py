"""What this layer wants to reach beside others, as ratios in one run, and what it has reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers import OURS
from benchmarks.results import Result
from benchmarks.runner import Outcome
from benchmarks.scenarios import Metric

PUBSUB, CORE, NATS, POSTGRES = "channels_redis pub/sub", "channels_redis", "channels-nats", "channels_postgres"
OTHERS = (PUBSUB, CORE, NATS, POSTGRES, "channels_rabbitmq")
"""The layers that reach other processes."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio, ours / theirs: at least `bound` of deliveries a second, at most `bound` of times.

    Theirs is that of the best of `peers` which lost nothing, in the scenario `beside` if that is another.
    """

    scenario: str
    bound: float
    peers: tuple[str, ...] = OTHERS
    metric: Metric = "rate"
    ours: str = OURS
    beside: str | None = None

    @property
    def is_least(self) -> bool:
        """Whether more is better."""
        return self.metric == "rate"

    def holds(self, ratio: float) -> bool:
        """Return True if a ratio meets the goal."""
        return ratio >= self.bound if self.is_least else ratio <= self.bound

    def best(self, outcome: Outcome) -> str | None:
        """Return the name of the peer to compare with, None if none was measured."""
        rows = [row for peer in self.peers if (row := outcome.summary(self.beside or self.scenario, peer)) is not None]
        found = [(getattr(row, self.metric), row.peer) for row in rows if not _fault(row)]
        able = [(value, peer) for value, peer in found if value is not None]
        return (max if self.is_least else min)(able)[1] if able else None

    def line(self, outcome: Outcome) -> str | None:
        """Return what was reached, as a line of a table; None if it was not measured."""
        ours, peer = outcome.summary(self.scenario, self.ours), self.best(outcome)
        if ours is None or peer is None:
            return None
        ratio = outcome.ratio(self.scenario, self.metric, peer, ours=self.ours, beside=self.beside)
        if fault := _fault(ours):
            verdict = f"missed: {fault}"
        elif ratio is not None:
            verdict = "met" if self.holds(ratio) else "missed"
        else:
            return None
        cells = (
            f"`{self.scenario}`",
            self.metric,
            self.ours,
            peer + (f", `{self.beside}`" if self.beside else ""),
            f"at {'least' if self.is_least else 'most'} {self.bound:g}",
            "" if ratio is None else f"{ratio:.2f}",
            verdict,
        )
        return f"| {' | '.join(cells)} |"


def _fault(row: Result) -> str:
    """Return why the numbers of a row count for nothing; an empty text if they do."""
    return row.error or (f"lost {row.lost:g}" if row.lost else "")


def _goals() -> Iterator[Goal]:
    yield Goal("ping_pong", 1.0, metric="p50_ms")
    yield Goal("ping_pong", 1.4, ("raw pg_notify (floor)",), metric="p50_ms")
    for scenario in ("send_64", "send_512"):
        for peer, bound in {PUBSUB: 5.0, CORE: 20.0, POSTGRES: 10.0, NATS: 1.0}.items():
            yield Goal(scenario, bound, (peer,))
    yield Goal("send_1", 1.0, (NATS,), ours="channels_pg_sa unconfirmed")
    for scenario in ("group_1x100", "group_4x250", "group_4x250_by_8", "group_1x5000", "group_8x1250"):
        yield Goal(scenario, 1.5)
    yield Goal("group_4x250_paced", 1.0, metric="last_p50_ms")
    yield Goal("uvicorn_500", 1.0, metric="last_p50_ms")
    yield Goal("send_32kB", 1.0)
    yield Goal("send_900kB", 1.0)
    yield Goal("joins", 5.0)
    yield Goal("plain_sync", 4.0, beside="async_to_sync")
    yield Goal("among_1000000", 1.2, (OURS,), metric="call_p50_ms", beside="among_1000")


GOALS = tuple(_goals())


def table(outcome: Outcome) -> str:
    """Return what was reached of what was measured, as a table; an empty text if that is nothing."""
    lines = [line for goal in GOALS if (line := goal.line(outcome)) is not None]
    heads = ["| scenario | of | ours | beside | goal | reached | |", "|---|---|---|---|---|---:|---|"]
    return "\n".join(["Goals, ours / theirs:", "", *heads, *lines]) if lines else ""
