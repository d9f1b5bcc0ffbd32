"""What a node hears, in the order in which the database sent it: messages into channels, members into groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from channels_pg_sa.entry import GONE, Entry, Row
from channels_pg_sa.members import MemberIndex
from channels_pg_sa.names import MAX_LENGTH, node_of, queue_of
from channels_pg_sa.parcels import Acknowledged, Flushed, Frame, Joined, Left, Mark, Parcel, Ring

from .knownrows import KnownRows
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
        self.rows = KnownRows()
        self._unfetched: dict[int, tuple[Entry, list[str]]] = {}

    # What is heard -------------------------------------------------------------------------------

    def hear(self, frames: Iterable[Frame | None], now: float) -> None:
        """Take in frames in the order in which the database sent them."""
        for frame in frames:
            if isinstance(frame, Parcel):
                self.rows.shown.discard(frame.id)
                self._arrive(frame, now)
            elif isinstance(frame, Ring):
                self._to_do().rings.append(frame)
            elif isinstance(frame, Joined):
                self.members.join(frame.group, frame.channel, frame.expires)
            elif isinstance(frame, Left):
                self.members.leave(frame.group, frame.channel)
            elif isinstance(frame, Mark):
                self.rows.mark(frame.number)
            elif isinstance(frame, Flushed):
                self.clear()
                self._to_do().flushes.append(frame)
            elif isinstance(frame, Acknowledged):
                self._to_do().flushes.append(frame)
            else:
                self.counters["malformed"] += 1

    def vanished(self, waiting: Iterable[Parcel]) -> None:
        """Forget ids whose rows are gone without this node's doing; messages that are here stay.

        Args:
            waiting: the node's mailbox, as it has been read since the recovery began.
        """
        self._lose(self.rows.end_reading({parcel.id: parcel.expires for parcel in waiting}))

    def recover(self, waiting: Iterable[Parcel], barrier: int, now: float) -> None:
        """Take in what the node's mailbox holds.

        Args:
            waiting: its rows, as doorbells.
            barrier: the number of a mark that is sent after the table was read, and so after all marks before. What the
                table showed may still be notified of before that mark, so until then even the ids of deleted rows are
                remembered.
            now: Unix time by the database's clock.
        """
        self.rows.wait_for(barrier)
        for parcel in waiting:
            if not self.rows.is_known(parcel.id, parcel.expires):
                self._arrive(parcel, now)
                self.rows.shown.add(parcel.id)

    def _arrive(self, parcel: Parcel, now: float) -> None:
        if self.rows.is_known(parcel.id, parcel.expires):  # read from the table after a reconnect, and heard of as well
            return
        self._make_room(parcel.id)
        self.rows.note(parcel.id, parcel.expires)
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

    def _make_room(self, row: int) -> None:
        """If another had a new row's id, that is lost: the table has begun to count again."""
        if row in self.rows:
            self._lose({row})

    def _lose(self, rows: set[int]) -> None:
        """Forget ids whose rows are gone without this node's doing; messages that are here stay."""
        self.rows.forget(rows)
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
                self.rows.forget([row])  # from its queue, where it may be again, it can still come to us
            elif not entry.keeps_row:
                self._to_do().delete.append((row, expires))
            for channel in channels:
                if channel in self.unread:
                    self._wake(channel, self.unread[channel])

    def claimed(self, rows: Iterable[tuple[int, str, bytes, float]]) -> None:
        """Take in rows of queues that are now this node's: id, channel, payload, expiry."""
        for row, channel, payload, expires in sorted(rows):
            if row in self._unfetched and self.rows.is_known(row, expires):  # the mailbox was read meanwhile
                self.fetched([(row, self._unfetched[row][0].expires)], {row: payload})
            elif not self.rows.is_known(row, expires):
                self._make_room(row)
                self.rows.note_claimed(row, expires)
                if not 0 < len(channel) < MAX_LENGTH:
                    self._refuse(row, expires)
                    continue
                self.counters["received"] += 1
                self.put([channel], Entry(row, expires, payload, keeps_row=True, name=channel))

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
        for row in self._unfetched.keys() - self.rows.shown:
            entry, _ = self._unfetched.pop(row)
            self._to_do().delete.append((row, entry.expires))
        for entry in self._forget_unread(lambda _channel, _local: True, self.rows.shown):
            self._delete_row(entry)

    def claimed_unread(self) -> list[Row]:
        """Drop the messages of queues that this node has claimed and nobody here waits for; return their rows.

        Their ids stay known until `rows.returned` tells that they are in their queues again.
        """
        unread = self._forget_unread(self._is_left_over)
        rows = [(entry.id, entry.expires) for entry in unread if entry.id is not None]
        for row, _ in rows:
            self._unfetched.pop(row, None)
        return rows
