"""What was sent against what came: the numbers of a soak, and which of them may not be."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields

Outcomes = Mapping[int, str]
"""By number: "sent", "unsure" (it may arrive or not) or "not sent"."""


@dataclass
class Balance:
    """Counts for one kind of message, each delivery to a member of a group counted for itself.

    Args:
        sent: deliveries that had to take place.
        unsure: deliveries that were free to, because the sender was told that the message may have been sent.
        delivered: deliveries.
        duplicates: what came again.
        unsent: what came though its sender was told that nothing was sent.
        lost: what was sent and did not come.
        excused: what was sent and did not come because a process that had claimed it was killed.
        disordered: what came after its successor of the same sender and channel.
    """

    sent: int = 0
    unsure: int = 0
    delivered: int = 0
    duplicates: int = 0
    unsent: int = 0
    lost: int = 0
    excused: int = 0
    disordered: int = 0

    def __add__(self, other: Balance) -> Balance:
        return Balance(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong that may not."""
        return not (self.duplicates or self.unsent or self.lost or self.disordered)


def balance(outcomes: Outcomes, came: list[int], *, ordered: bool, in_hand: Collection[int] = ()) -> Balance:
    """Compare a stream with what one channel got of it.

    Args:
        outcomes: of the sends.
        came: the numbers, in the order in which they came.
        ordered: whether one reader got them; the order of several says nothing.
        in_hand: what killed processes had claimed.
    """
    times = Counter(came)
    sent = {number for number, outcome in outcomes.items() if outcome == "sent"}
    missing = sent - times.keys()
    # What may have been sent may have been late, too: its statement had lost its caller.
    sure = [number for number in came if number in sent]
    return Balance(
        sent=len(sent),
        unsure=sum(outcome == "unsure" for outcome in outcomes.values()),
        delivered=len(came),
        duplicates=times.total() - len(times),
        unsent=sum(outcomes.get(number) == "not sent" for number in times),
        lost=len(missing.difference(in_hand)),
        excused=len(missing.intersection(in_hand)),
        disordered=sum(after < before for before, after in itertools.pairwise(sure)) if ordered else 0,
    )


class Books:
    """All that was sent and that came."""

    def __init__(self) -> None:
        self.outcomes: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self.came: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self.members: dict[str, str] = {}
        self.in_hand: defaultdict[str, set[int]] = defaultdict(set)

    def deliveries(self) -> dict[str, Balance]:
        """Return a balance for each kind of message."""
        total = {"channel": Balance(), "group": Balance(), "job": Balance(), "passing member": Balance()}
        for stream, outcomes in self.outcomes.items():
            _, kind, name = stream.split(" ")
            for reader in self._readers(kind, name):
                came = self.came.get((reader, stream), [])
                total[kind] += balance(outcomes, came, ordered=kind != "job", in_hand=self.in_hand[stream])
        for (reader, stream), came in self.came.items():
            if reader.startswith("passing"):
                # It may miss anything, but not get it twice, or in disorder.
                outcomes = self.outcomes[stream]
                part = {number: outcomes.get(number, "not sent") for number in came}
                total["passing member"] += balance(part, came, ordered=True)
        return total

    def is_settled(self) -> bool:
        """Whether nothing is missing."""
        return not any(each.lost for each in self.deliveries().values())

    def _readers(self, kind: str, name: str) -> Iterable[str]:
        if kind == "channel":
            return [name]
        if kind == "job":
            return ["worker"]
        return [channel for channel, group in self.members.items() if group == name]
