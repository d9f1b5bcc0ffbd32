"""When to claim rows of the queues that this node's readers share with other nodes."""

from __future__ import annotations

from dataclasses import dataclass

from .names import queue_of

ANYWHERE = 0, 2**63 - 1
"""The first and the last id that a row can have."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request for up to `count` rows of a queue, with ids from `first` to `last`.

    Args:
        channel: what the readers asked for; a full name with a local part takes only its own rows.
        first: no row below it is known to wait, so that the database need not walk over what was deleted.
        last: the last that we have heard of, or that was there when we looked for what nobody told us. So a row below
            `first`, whose transaction lasted, is not overtaken by what was sent behind its commit and rings after it.
    """

    channel: str
    first: int
    last: int
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
class _State:
    span: tuple[int, int] | None = None  # the first and last id that may wait; None: nothing does that we have heard of
    busy: bool = False  # a claim is under way
    heard: bool = False  # its queue's doorbell reaches us

    def widen(self, first: int, last: int) -> None:
        """Take note that rows may wait there."""
        self.span = (first, last) if self.span is None else (min(self.span[0], first), max(self.span[1], last))


class ClaimBook:
    """Decide on claims from doorbells, waiting readers and the outcomes of earlier claims."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}
        self._channels: dict[str, dict[str, None]] = {}  # of each queue, in the order they came

    @property
    def channels(self) -> list[str]:
        """The channels that somebody here reads, or read a while ago."""
        return list(self._states)

    @property
    def queues(self) -> set[str]:
        """The queues whose doorbells this node must hear."""
        return set(self._channels)

    @property
    def deaf(self) -> set[str]:
        """The queues whose doorbells have not been listened for yet."""
        return {queue_of(channel) for channel, state in self._states.items() if not state.heard}

    def open(self, channel: str) -> bool:
        """Take note of a reader; return whether the queue's doorbell must be listened for first."""
        if channel in self._states:
            return False
        self._states[channel] = _State()
        self._channels.setdefault(queue_of(channel), {})[channel] = None
        return True

    def close(self, channel: str) -> None:
        """Forget a channel that nobody here reads any more, unless a claim for it is under way."""
        state = self._states.get(channel)
        if state is not None and not state.busy:
            del self._states[channel]
            queue = queue_of(channel)
            del self._channels[queue][channel]
            if not self._channels[queue]:
                del self._channels[queue]

    def listening(self, queue: str) -> list[str]:
        """Note that the doorbell is heard from now on, and that rows may wait from before; return whom to claim for."""
        for channel in self._channels.get(queue, ()):
            self._states[channel].heard = True
        return self.ring(queue, *ANYWHERE)

    def ring(self, queue: str, first: int, last: int | None = None) -> list[str]:
        """Note a new row, or rows from a first to a last one; return the channels that may claim them."""
        rung = list(self._channels.get(queue, ()))
        for channel in rung:
            self._states[channel].widen(first, first if last is None else last)
        return rung

    def is_due(self, channel: str) -> bool:
        """Tell whether rows may wait that a claim would get."""
        state = self._states.get(channel)
        return state is not None and state.span is not None and not state.busy

    def start(self, channel: str, readers: int) -> Claim | None:
        """Return the claim to make for so many waiting readers, None if there is nothing to do now."""
        state = self._states.get(channel)
        if state is None or state.span is None or state.busy or not state.heard or readers < 1:
            return None
        claim = Claim(channel, *state.span, readers)
        state.busy, state.span = True, None  # what rings from now on is news
        return claim

    def finish(self, claim: Claim, rows: list[int], end: int | None = None) -> None:
        """Note the ids that were claimed. Fewer than asked for: nothing waits but what rang meanwhile.

        Args:
            claim: that is over.
            rows: which it has got.
            end: the last id that was in the queue at that time, if the claim had no end.
        """
        state = self._states[claim.channel]
        state.busy = False
        last = claim.last if end is None else end
        if len(rows) == claim.count and max(rows) < last:
            state.widen(max(rows) + 1, last)

    def fail(self, claim: Claim) -> None:
        """Note that the claim's outcome is unknown: everything may wait."""
        state = self._states[claim.channel]
        state.busy, state.span = False, ANYWHERE
