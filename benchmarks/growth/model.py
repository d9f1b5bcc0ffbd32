"""How the server's work grows: a linear model of one statement that sends, its fit, and what it says of other loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_NOTIFICATION = 7_999
_FRAME = 60
"""Bytes of a message in a notification beside its payload: id, expiry, name."""
_PARCEL = 5_850
"""Payloads of so many bytes do not travel in notifications (channels_pg_sa/schema.sql)."""


@dataclass(frozen=True, slots=True)
class Load:
    """One statement that sends, and who is there when it commits.

    Attributes:
        listeners: connections of the database that LISTEN, those of the receivers among them.
        receivers: processes that have members of the group, or over whose channels the messages are spread.
        group: whether each message is to a group, and so to all receivers; otherwise it is to one of them.
        messages: in the statement.
        size: bytes of each payload.
    """

    listeners: int
    receivers: int
    group: bool
    messages: int = 1
    size: int = 100

    @property
    def rows(self) -> int:
        """Rows that the statement inserts: one for each message and process that it goes to."""
        return self.messages * self.receivers if self.group else self.messages

    @property
    def notifications(self) -> int:
        """Notifications that it sends: for each receiver as few as hold all messages."""
        frame = _FRAME + (math.ceil(self.size / 3) * 4 if self.size < _PARCEL else 0)
        return self.receivers * math.ceil(self.rows / self.receivers / max(1, _NOTIFICATION // (frame + 1)))

    def terms(self) -> tuple[float, ...]:
        """Return how often each of TERMS is met."""
        return (
            1.0,
            float(self.group),
            float(self.rows),
            float(self.notifications),
            float(self.listeners),
            float(self.listeners * self.notifications),
            self.rows * self.size / 1_000,
        )

    def __str__(self) -> str:
        whom = f"a group in {self.receivers} processes" if self.group else f"channels of {self.receivers}"
        return f"{self.messages} × {self.size:,} B to {whom}, {self.listeners} listen"


TERMS = (
    "a statement that sends",
    "… to groups, in addition",
    "a row: a message for one process",
    "a notification",
    "a listening connection that is woken",
    "a notification that a woken connection reads",
    "1,000 bytes of payload in a row",
)


@dataclass(frozen=True, slots=True)
class Model:
    """Microseconds of server CPU for each of TERMS."""

    costs: tuple[float, ...]

    def predict(self, load: Load) -> float:
        """Return the microseconds that one statement costs the server."""
        return sum(cost * term for cost, term in zip(self.costs, load.terms(), strict=True))


def fit(loads: Sequence[Load], measured: Sequence[float]) -> Model:
    """Return the model that is nearest to the measured microseconds."""
    return Model(least_squares([load.terms() for load in loads], measured))


def least_squares(rows: Sequence[Sequence[float]], measured: Sequence[float]) -> tuple[float, ...]:
    """Return the factors, none of them negative, whose relative errors have the least sum of squares.

    Relative, because loads differ by orders of magnitude, and each is to count alike. No work takes less than no time:
    a term that would is left out.

    Raises:
        ValueError: the rows do not tell the terms apart.
    """
    used = list(range(len(rows[0])))
    while True:
        scaled = [[row[term] / cost for term in used] for row, cost in zip(rows, measured, strict=True)]
        normal = [[sum(row[i] * row[j] for row in scaled) for j in range(len(used))] for i in range(len(used))]
        found = _solve(normal, [sum(row[i] for row in scaled) for i in range(len(used))])
        least = min(range(len(used)), key=found.__getitem__)
        if found[least] >= 0.0:
            factors = dict(zip(used, found, strict=True))
            return tuple(factors.get(term, 0.0) for term in range(len(rows[0])))
        del used[least]


def _solve(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    """Solve a system of linear equations by elimination with the largest pivot."""
    lines = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    for column in range(len(lines)):
        pivot = max(range(column, len(lines)), key=lambda line: abs(lines[line][column]))
        lines[column], lines[pivot] = lines[pivot], lines[column]
        if abs(lines[column][column]) <= 1e-12 * max(abs(row[column]) for row in matrix):
            raise ValueError(f"the measured loads do not tell term {column} from the others")
        for line in range(len(lines)):
            if line != column:
                factor = lines[line][column] / lines[column][column]
                lines[line] = [a - factor * b for a, b in zip(lines[line], lines[column], strict=True)]
    return [lines[place][-1] / lines[place][place] for place in range(len(lines))]


@dataclass(frozen=True, slots=True)
class Costs:
    """All that an installation costs, in microseconds of server CPU.

    Attributes:
        sending: of a statement that sends.
        deletion: of a statement that deletes, and of each row of it.
        beat: of a heartbeat.
        beats: heartbeats of a process in each interval.
    """

    sending: Model
    deletion: tuple[float, float]
    beat: float
    beats: float

    def message(self, load: Load, per_deletion: float = 1.0) -> float:
        """Return what one message costs, its deletion by every receiver included.

        Args:
            load: the statement it is sent with.
            per_deletion: rows that a receiver deletes in one statement.
        """
        statement, row = self.deletion
        return (self.sending.predict(load) + load.rows * (statement / per_deletion + row)) / load.messages

    def idle_cores(self, processes: int, interval: float) -> float:
        """Return the cores that so many idle processes keep busy with heartbeats, at an interval in seconds."""
        return processes * self.beats * self.beat / interval / 1e6
