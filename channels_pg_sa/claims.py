"""When to claim rows of the queues that this node's readers share with other nodes."""

from __future__ import annotations

from dataclasses import dataclass

from .names import queue_of


@dataclass(frozen=True, slots=True)
class Claim:
    """A request for up to `count` rows of a queue, from id `floor` on.

    Args:
        channel: what the readers asked for; a full name with a local part takes only its own rows.
        floor: no row below it can be waiting, so that the database need not walk over what was deleted.
    """

    channel: str
    floor: int
    count: int

    @property
    def queue(self) -> str:
        """The queue that the channel's messages wait in."""
        return queue_of(self.channel)

    @property
    def only(self) -> str | None:
        """The one channel to take rows of, None for all in the queue."""
        return None if self.channel == self.queue else self.channel


@dataclass(slots=True)
class _Desk:
    floor: int | None = None  # the lowest id that may wait; None: nothing does, as far as we have heard
    busy: bool = False  # a claim is under way
    heard: bool = False  # its queue's doorbell reaches us


class ClaimBook:
    """Decide on claims from doorbells, waiting readers and the outcomes of earlier claims."""

    def __init__(self) -> None:
        self._desks: dict[str, _Desk] = {}
        self._channels: dict[str, dict[str, None]] = {}  # of each queue, in the order they came

    @property
    def channels(self) -> list[str]:
        """The channels that somebody here reads, or read a while ago."""
        return list(self._desks)

    @property
    def queues(self) -> set[str]:
        """The queues whose doorbells this node must hear."""
        return set(self._channels)

    @property
    def deaf(self) -> set[str]:
        """The queues whose doorbells have not been listened for yet."""
        return {queue_of(channel) for channel, desk in self._desks.items() if not desk.heard}

    def open(self, channel: str) -> bool:
        """Take note of a reader; return whether the queue's doorbell must be listened for first."""
        if channel in self._desks:
            return False
        self._desks[channel] = _Desk()
        self._channels.setdefault(queue_of(channel), {})[channel] = None
        return True

    def close(self, channel: str) -> None:
        """Forget a channel that nobody here reads any more, unless a claim for it is under way."""
        desk = self._desks.get(channel)
        if desk is not None and not desk.busy:
            del self._desks[channel]
            queue = queue_of(channel)
            del self._channels[queue][channel]
            if not self._channels[queue]:
                del self._channels[queue]

    def listening(self, queue: str) -> list[str]:
        """Note that the doorbell is heard from now on, and that rows may wait from before; return whom to claim for."""
        return self._ring(queue, 0, heard=True)

    def ring(self, queue: str, row: int) -> list[str]:
        """Note a new row; return the channels that may claim it."""
        return self._ring(queue, row, heard=False)

    def _ring(self, queue: str, row: int, *, heard: bool) -> list[str]:
        rung = list(self._channels.get(queue, ()))
        for channel in rung:
            desk = self._desks[channel]
            desk.heard = desk.heard or heard
            desk.floor = row if desk.floor is None else min(desk.floor, row)
        return rung

    def is_due(self, channel: str) -> bool:
        """Tell whether rows may wait that a claim would get."""
        desk = self._desks.get(channel)
        return desk is not None and desk.floor is not None and not desk.busy

    def start(self, channel: str, readers: int) -> Claim | None:
        """Return the claim to make for so many waiting readers, None if there is nothing to do now."""
        desk = self._desks.get(channel)
        if desk is None or desk.floor is None or desk.busy or not desk.heard or readers < 1:
            return None
        claim = Claim(channel, desk.floor, readers)
        desk.busy, desk.floor = True, None  # what rings from now on is news
        return claim

    def finish(self, claim: Claim, rows: list[int]) -> None:
        """Note the ids that were claimed. Fewer than asked for: nothing waits but what rang meanwhile."""
        desk = self._desks[claim.channel]
        desk.busy = False
        if len(rows) == claim.count:
            above = max(rows) + 1
            desk.floor = above if desk.floor is None else min(desk.floor, above)

    def fail(self, claim: Claim) -> None:
        """Note that the claim's outcome is unknown: everything may wait."""
        desk = self._desks[claim.channel]
        desk.busy, desk.floor = False, 0
