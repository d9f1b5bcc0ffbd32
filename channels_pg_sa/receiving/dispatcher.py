"""What a node hears, in the order in which the database sent it: messages into channels, members into groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from channels_pg_sa.entry import GONE, SAME, Entry, Row
from channels_pg_sa.members import MemberIndex
from channels_pg_sa.names import MAX_LENGTH, node_of, queue_of
from channels_pg_sa.parcels import Acknowledged, Flushed, Frame, Joined, Left, Mark, Parcel, Ring

from .localchannels import LocalChannels


class Dispatcher(LocalChannels):
    """Take in what a node hears, and hand it to the readers of its channels. Decides; does no I/O.

    Args:
        capacity_of: gives the most unread messages of a channel, None for no limit.
        bounded: whether senders count the rows of unread messages, so that these must stay until they are read.
    """

    def __init__(self, capacity_of: Callable[[str], int | None], *, bounded: bool) -> None:
        super().__init__(capacity_of, bounded=bounded)
        self.members = MemberIndex()
        self._known: dict[int, float] = {}  # when its message expires, by row
        self._unfetched: dict[int, tuple[Entry, list[str]]] = {}
        self._barrier: int | None = None
        self._queries = 0  # under way, whose answers may show rows that are deleted before
        self._gone: set[int] = set()  # ids of deleted rows that we may yet be told of once more
        self._before: dict[int, float] | None = None  # while a recovery reads: what was known before, and since then
        self._shown: set[int] = set()  # until its mark comes round: ids that are known by it alone, or by claims beside

    # What is heard -------------------------------------------------------------------------------

    def hear(self, frames: Iterable[Frame | None], now: float) -> None:
        """Take in frames in the order in which the database sent them."""
        for frame in frames:
            if isinstance(frame, Parcel):
                self._shown.discard(frame.id)
                self._arrive(frame, now)
            elif isinstance(frame, Ring):
                self._to_do().rings.append(frame)
            elif isinstance(frame, Joined):
                self.members.join(frame.group, frame.channel, frame.expires)
            elif isinstance(frame, Left):
                self.members.leave(frame.group, frame.channel)
            elif isinstance(frame, Mark):
                if self._barrier is not None and frame.number >= self._barrier:
                    self._end_recovery()
            elif isinstance(frame, Flushed):
                self.clear()
                self._to_do().flushes.append(frame)
            elif isinstance(frame, Acknowledged):
                self._to_do().flushes.append(frame)
            else:
                self.counters["malformed"] += 1

    def begin_recovery(self) -> None:
        """Note that the node's mailbox is about to be read: rows which come from now on may be missing there."""
        self._before = dict(self._known)
        self._shown.clear()

    def vanished(self, waiting: Iterable[Parcel]) -> None:
        """Forget ids whose rows are gone without this node's doing; messages that are here stay.

        A server that crashes loses all rows, and begins to count again: an id may be another row's already, whose
        message expires at another time.

        Args:
            waiting: the node's mailbox, as it has been read since `begin_recovery`.
        """
        there = {parcel.id: parcel.expires for parcel in waiting}
        before, self._before = self._before or {}, None
        rows = {row for row, expires in before.items() if abs(there.get(row, -math.inf) - expires) > SAME}
        self._gone -= rows & there.keys()  # these ids are others' by now
        self._lose(rows - self._gone)

    def recover(self, waiting: Iterable[Parcel], barrier: int, now: float) -> None:
        """Take in what the node's mailbox holds.

        Args:
            waiting: its rows, as doorbells.
            barrier: the number of a mark that is sent after the table was read, and so after all marks before. What the
                table showed may still be notified of before that mark, so until then even the ids of deleted rows are
                remembered.
            now: Unix time by the database's clock.
        """
        self._barrier = barrier
        for parcel in waiting:
            if not self._is_known(parcel.id, parcel.expires):
                self._arrive(parcel, now)
                self._shown.add(parcel.id)

    def _end_recovery(self) -> None:
        self._barrier = None
        self._shown.clear()
        self._forget_gone()

    def _forget_gone(self) -> None:
        if self._barrier is None and self._before is None and not self._queries:
            self._forget(self._gone)
            self._gone.clear()

    def _arrive(self, parcel: Parcel, now: float) -> None:
        if self._is_known(parcel.id, parcel.expires):  # read from the table after a reconnect, and heard of as well
            return
        self._note(parcel.id, parcel.expires)
        if not 0 < len(parcel.name) < MAX_LENGTH:
            self._refuse(parcel.id, parcel.expires)
            return
        if parcel.grouped:
            channels = self.members.members(parcel.name, now)
            kept = False
        else:
            channels = [parcel.name]
            kept = self._bounded or node_of(parcel.name) is None
        if parcel.expires <= now or not channels:
            self.counters["expired" if channels else "no_member"] += 1
            self._to_do().delete.append((parcel.id, parcel.expires))
            return
        shared = len(channels) > 1
        entry = Entry(
            parcel.id, parcel.expires, encoded=parcel.encoded, keeps_row=kept, name=parcel.name, is_shared=shared
        )
        if parcel.encoded is None:
            self._unfetched[parcel.id] = (entry, channels)
            self._to_do().fetch.append((parcel.id, parcel.expires))
        elif not kept:
            self._to_do().delete.append((parcel.id, parcel.expires))
        self.counters["received"] += len(channels)
        self.put(channels, entry, parcel.name if parcel.grouped else None)

    def _is_known(self, row: int, expires: float) -> bool:
        """Whether a message has come before; not another one with its id, since the table began to count again."""
        known = self._known.get(row)
        return known is not None and (known == expires or abs(known - expires) <= SAME)  # both may be infinite

    def _note(self, row: int, expires: float) -> None:
        """Remember a row that has come. If another had its id, that is lost: the table has begun to count again."""
        if row in self._known:
            self._lose({row})
        self._gone.discard(row)
        self._known[row] = expires

    def _lose(self, rows: set[int]) -> None:
        """Forget ids whose rows are gone without this node's doing; messages that are here stay."""
        self._forget(rows)
        self.fetched([(row, self._unfetched[row][0].expires) for row in rows & self._unfetched.keys()], {})
        for local in self.unread.values():
            for entry in local.entries:
                if entry.id in rows:
                    entry.id = None

    def _refuse(self, row: int, expires: float) -> None:
        """Drop a row that somebody wrote under a name which no reader can have: none, or one too long for an index."""
        self.counters["malformed"] += 1
        self._to_do().delete.append((row, expires))

    def fetched(self, asked: Iterable[Row], payloads: dict[int, bytes]) -> None:
        """Fill in the content of doorbells; those whose row is gone are dropped."""
        for row, expires in asked:
            entry, channels = self._unfetched.get(row, (None, ()))
            if entry is None or entry.expires != expires:  # meanwhile the id may have become another's
                continue
            del self._unfetched[row]
            entry.content = payloads.get(row)
            if entry.content is None:
                entry.expires = GONE
                self.counters["vanished"] += 1
                self._forget([row])  # from its queue, where it may be again, it can still come to us
            elif not entry.keeps_row:
                self._to_do().delete.append((row, expires))
            for channel in channels:
                if channel in self.unread:
                    self._wake(channel, self.unread[channel])

    def begin_query(self) -> None:
        """Note that a statement is under way which claims rows, or reads the mailbox again.

        A row that its answer shows may be known from elsewhere before that comes, and read and deleted: claims move
        rows before they are answered, and the mailbox shows these. The answer must not bring it again.
        """
        self._queries += 1

    def end_query(self) -> None:
        """Note that one has been answered, or never will be."""
        self._queries -= 1
        self._forget_gone()

    def claimed(self, rows: Iterable[tuple[int, str, bytes, float]]) -> None:
        """Take in rows of queues that are now this node's: id, channel, payload, expiry."""
        for row, channel, payload, expires in sorted(rows):
            if row in self._unfetched and self._is_known(row, expires):  # the mailbox was read meanwhile
                self.fetched([(row, self._unfetched[row][0].expires)], {row: payload})
            elif not self._is_known(row, expires):
                self._note(row, expires)
                if self._before is not None:
                    self._shown.add(row)
                if not 0 < len(channel) < MAX_LENGTH:
                    self._refuse(row, expires)
                    continue
                self.counters["received"] += 1
                self.put([channel], Entry(row, expires, payload, keeps_row=True, name=channel))

    def deleted(self, rows: Iterable[Row]) -> None:
        """Forget ids whose rows are gone, as soon as nothing can tell of them any more."""
        self._gone.update(self._still_of(rows))
        self._forget_gone()

    def announce(self, payload: bytes, expires: float) -> None:
        """Put a message of the layer's own into each channel that is in a group here or was read lately.

        Lately, because its reader may be between two receive() calls. Channels that are read only through a prefix, as
        those of `specific!` are, get none: whoever reads them would get one for each.
        """
        channels = {channel for _, channel, _ in self.members}
        for name, local in self._locals.items():
            if name[-1] != "!" and (local.readers or queue_of(name) not in self._prefix_readers):
                channels.add(name)
        self.put(channels, Entry(None, expires, payload, is_shared=True), group="")

    def clear(self) -> None:
        """Forget all unread messages; readers go on waiting, and of each membership that is gone we hear by itself.

        Not what a recovery has just read in the mailbox: it may have been sent after this flush, of which the recovery
        heard late. If not, its row is gone, as whoever fetches its content will see.
        """
        for row in self._unfetched.keys() - self._shown:
            entry, _ = self._unfetched.pop(row)
            self._to_do().delete.append((row, entry.expires))
        for entry in self._forget_unread(lambda _channel, _local: True, self._shown):
            self._delete_row(entry)

    def claimed_unread(self) -> list[Row]:
        """Drop the messages of queues that this node has claimed and nobody here waits for; return their rows.

        Their ids stay known until `returned` tells that they are in their queues again.
        """
        unread = self._forget_unread(self._is_left_over)
        rows = [(entry.id, entry.expires) for entry in unread if entry.id is not None]
        for row, _ in rows:
            self._unfetched.pop(row, None)
        return rows

    def returned(self, rows: Iterable[Row]) -> None:
        """Forget the ids of rows that are in their queues again, so that they may be claimed again."""
        self._forget(self._still_of(rows))

    def _still_of(self, rows: Iterable[Row]) -> list[int]:
        """Return the ids of rows, but for those that have become others' meanwhile."""
        return [row for row, expires in rows if self._known.get(row) == expires]

    def _forget(self, rows: Iterable[int]) -> None:
        for row in rows:
            self._known.pop(row, None)
            if self._before is not None:
                self._before.pop(row, None)  # should it come again, that is another time
