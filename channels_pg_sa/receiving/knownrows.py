"""Which rows have come, so that each message is taken in once: notifications, the mailbox and claims overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from channels_pg_sa.entry import SAME, Row


class KnownRows:
    """The ids of a node's rows, each with the moment at which its message expires.

    By both a row is known: after a crash of the server, or in tables that were made anew, the id may be another's.
    Those of deleted rows stay until nothing can show them once more: no statement that is under way, and no
    notification that was sent before a recovery's mark.
    """

    def __init__(self) -> None:
        self._expires: dict[int, float] = {}
        self._gone: set[int] = set()  # of deleted rows, that we may yet be told of once more
        self._queries = 0  # under way, whose answers may show rows that are deleted before
        self._barrier: int | None = None
        self._before: dict[int, float] | None = None  # while a recovery reads: what was known before, and since then
        self.shown: set[int] = set()
        """Until a recovery's mark comes round: ids that are known by it alone, or by claims beside it."""

    def __contains__(self, row: int) -> bool:
        """Whether a row with this id is known, whatever message it has."""
        return row in self._expires

    def is_known(self, row: int, expires: float) -> bool:
        """Whether a message has come before; not another one with its id, since the table began to count again."""
        known = self._expires.get(row)
        return known is not None and (known == expires or abs(known - expires) <= SAME)  # both may be infinite

    def note(self, row: int, expires: float) -> None:
        """Remember a row that has come."""
        self._gone.discard(row)
        self._expires[row] = expires

    def note_claimed(self, row: int, expires: float) -> None:
        """Remember a row that a claim has brought."""
        self.note(row, expires)
        if self._before is not None:
            self.shown.add(row)

    def forget(self, rows: Iterable[int]) -> None:
        """Forget ids; should one come again, that is another time."""
        for row in rows:
            self._expires.pop(row, None)
            if self._before is not None:
                self._before.pop(row, None)

    def deleted(self, rows: Iterable[Row]) -> None:
        """Forget ids whose rows are gone, as soon as nothing can tell of them any more."""
        self._gone.update(self._still_of(rows))
        self._forget_gone()

    def returned(self, rows: Iterable[Row]) -> None:
        """Forget the ids of rows that are in their queues again, so that they may be claimed again."""
        self.forget(self._still_of(rows))

    def _still_of(self, rows: Iterable[Row]) -> list[int]:
        """Return the ids of rows, but for those that have become others' meanwhile."""
        return [row for row, expires in rows if self._expires.get(row) == expires]

    def _forget_gone(self) -> None:
        if self._barrier is None and self._before is None and not self._queries:
            self.forget(self._gone)
            self._gone.clear()

    # What may show rows once more ----------------------------------------------------------------

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

    def begin_recovery(self) -> None:
        """Note that the node's mailbox is about to be read: rows which come from now on may be missing there."""
        self._before = dict(self._expires)
        self.shown.clear()

    def end_reading(self, there: Mapping[int, float]) -> set[int]:
        """Return the ids whose rows are gone without this node's doing.

        A server that crashes loses all rows, and begins to count again: an id may be another row's already, whose
        message expires at another time.

        Args:
            there: the node's mailbox, as it has been read since `begin_recovery`.
        """
        before, self._before = self._before or {}, None
        rows = {row for row, expires in before.items() if abs(there.get(row, -math.inf) - expires) > SAME}
        return rows - self._gone  # these are known to be gone, and make room for others when those arrive

    def wait_for(self, barrier: int) -> None:
        """Remember even the ids of deleted rows until a mark comes round."""
        self._barrier = barrier

    def mark(self, number: int) -> None:
        """Take note of a mark that has come round: what the table showed has been notified of, if it ever will be."""
        if self._barrier is not None and number >= self._barrier:
            self._barrier = None
            self.shown.clear()
            self._forget_gone()
