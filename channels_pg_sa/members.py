"""Which channels of this node are in which groups, by what it hears; and what to restore if the database loses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Member = tuple[str, str, float]
"""Group, channel, and when the membership ends (Unix time, infinity for never)."""


class MemberIndex:
    """The memberships of one node's channels.

    A join is under way until it is heard of or answered, whichever is first. If it is answered first it is coming until
    it is heard of; it is restored too, since its caller knows of it.

    A node whose row was swept hears of no leave. So one that is answered puts the membership in doubt, whether it is
    known or still coming: it is not restored, unless the channel joins again.
    """

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, float]] = {}
        self._absent: set[tuple[str, str]] = set()  # known, and in doubt
        self._underway: set[tuple[str, str]] = set()
        self._coming: dict[tuple[str, str], float | None] = {}  # their ends; None: in doubt

    def __iter__(self) -> Iterator[Member]:
        for group, channels in self._groups.items():
            for channel, expires in channels.items():
                yield group, channel, expires

    def __contains__(self, membership: tuple[str, str]) -> bool:
        group, channel = membership
        return channel in self._groups.get(group, ())

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def join(self, group: str, channel: str, expires: float) -> None:
        """Add the channel, or renew its membership; one that SQL may have written without a name has no reader."""
        is_in_doubt = False
        if (group, channel) in self._coming:  # older than what is under way
            is_in_doubt = self._coming.pop((group, channel)) is None
        else:
            self._underway.discard((group, channel))
        self._absent.discard((group, channel))
        if not channel:
            return
        if is_in_doubt:  # of an older join than the leave that nobody tells us of
            self._absent.add((group, channel))
        self._groups.setdefault(group, {})[channel] = expires

    def leave(self, group: str, channel: str) -> None:
        """Remove the channel, if it is a member."""
        self._absent.discard((group, channel))
        channels = self._groups.get(group)
        if channels is not None:
            channels.pop(channel, None)
            if not channels:
                del self._groups[group]

    def watch(self, joins: Iterable[tuple[str, str]]) -> None:
        """Note which joins are about to be done, after all that were before; from any thread, whatever goes on here."""
        self._underway = set(joins)

    def expect(self, group: str, channel: str, expires: float) -> None:
        """Note that a join is done; unless we have heard of it, we are going to."""
        if (group, channel) in self._underway:
            self._coming[group, channel] = expires

    def doubt(self, group: str, channel: str) -> None:
        """Note that the database knows of no such membership any more, of which nobody has told us, or ever may."""
        if (group, channel) in self:
            self._absent.add((group, channel))
        if (group, channel) in self._coming:
            self._coming[group, channel] = None

    def to_restore(self) -> list[Member]:
        """Return the memberships that the database must have, if it has lost them, in the order of their keys."""
        coming = [(*key, expires) for key, expires in self._coming.items() if expires is not None]
        known = (member for member in self if member[:2] not in self._absent and member[:2] not in self._coming)
        return sorted([*coming, *known])

    def replace(self, members: Iterable[Member]) -> None:
        """Forget all, and take these."""
        self._groups.clear()
        self._absent.clear()
        self._coming.clear()
        self._underway.clear()  # what was done before the reading began, we do not hear of
        for member in members:
            self.join(*member)

    def members(self, group: str, now: float) -> list[str]:
        """Return the channels whose membership has not ended at `now`, in the order they joined."""
        return [channel for channel, expires in self._groups.get(group, {}).items() if expires > now]
