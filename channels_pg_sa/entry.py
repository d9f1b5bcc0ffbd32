"""A message that was heard of and has not been read: what of it is here, and until when."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SAME = 0.001
"""Seconds by which two notes of a message's end may differ: a session may write times with fewer digits."""
GONE = 0.0
"""The end of a message whose row was gone before its content was fetched: it is over, and nothing is left to delete."""


Row = tuple[int, float]
"""A row's id, and when its message expires: by both it is told from another that has the id after a crash."""


@dataclass(slots=True, eq=False)
class Entry:
    """An unread message; a group's is shared by its members.

    Args:
        id: of its row; None for what never had one, or has lost it.
        expires: Unix time by the database's clock.
        content: the payload.
        encoded: the payload in base64, until somebody wants it. With neither, it has yet to be fetched.
        keeps_row: whether the row is deleted when the message is taken, rather than on arrival.
        name: of the channel or group that it was sent to.
        is_shared: whether it is in several mailboxes.
        copy: gives each of its readers a message of its own, once the first has decoded it.
    """

    id: int | None
    expires: float
    content: bytes | None = None
    encoded: bytes | None = None
    keeps_row: bool = False
    name: str = ""
    is_shared: bool = False
    copy: Callable[[], dict[str, Any]] | None = None

    # Members of a group in several threads share an entry and decode it without a lock. So `encoded` is read once and
    # first, and goes last: whoever finds it gone finds the content.

    @property
    def is_here(self) -> bool:
        """Whether there is a payload to take."""
        return self.encoded is not None or self.content is not None

    @property
    def is_gone(self) -> bool:
        """Whether its content will never be there."""
        return self.expires == GONE

    @property
    def payload(self) -> bytes:
        """The payload's bytes; b"" for what cannot be decoded, which no codec takes for a message."""
        encoded = self.encoded
        if encoded is not None:
            try:
                self.content = base64.b64decode(encoded)
            except binascii.Error:
                self.content = b""
            self.encoded = None
        return self.content or b""
