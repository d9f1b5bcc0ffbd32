"""Statements prepared under names of their own, for libpq itself.

psycopg adapts a statement's parameters and looks for its plan each time; for one message that takes about as long as
the server needs for it.

https://www.postgresql.org/docs/current/sql-prepare.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.adapt import Buffer

from channels_pg_sa.config import Settings
from channels_pg_sa.names import node_of
from channels_pg_sa.topics import sign_of, topic

from .arrays import BytesArray, TextArray, dumped
from .compiled import Compiled, compiled
from .jobs import Join, Leave, Send, Sending, membership_columns, publish_columns, send_columns


@dataclass(frozen=True, slots=True)
class Bound:
    """A prepared statement's name, and its parameters in binary format."""

    name: bytes
    values: Sequence[Buffer]


class Prepared:
    """The statements that send, join and leave, with all that is the same for a whole layer written into them.

    Args:
        settings: of the layer.
    """

    def __init__(self, settings: Settings) -> None:
        prefix, expiry = settings.prefix, settings.message_life
        self._statements = statements = compiled(settings.schema)
        self._prefix = prefix
        self._secret = ""
        self._send_one = _Statement("send_one", statements, prefix=prefix, expiry=expiry)
        self._publish_one = _Statement("publish_one", statements, prefix=prefix, expiry=expiry)
        self._send = _Statement("send", statements, prefix=prefix, expiry=expiry)
        self._publish = _Statement("publish", statements, prefix=prefix, expiry=expiry, queues=True)
        self._join = _Statement("join", statements, prefix=prefix, expiry=settings.membership_life)
        self._leave = _Statement("leave", statements, prefix=prefix)
        self._all = [self._send_one, self._publish_one, self._send, self._publish, self._join, self._leave]

    @property
    def prepare(self) -> str:
        """The SQL that prepares them in a session; its first result is for `learn`."""
        return "; ".join([self._statements["enter"].sql, *(statement.declaration for statement in self._all)])

    def learn(self, row: tuple[Any, ...] | None) -> None:
        """Take in what the statements must know of the installation: its secret, which stands in topics."""
        if row is None:
            raise LookupError("channels_pg_sa_installation is empty.")
        self._secret = row[0]

    @property
    def deallocate(self) -> str:
        """The SQL that takes them out of it."""
        return "; ".join(f"DEALLOCATE {statement.name}" for statement in self._all)

    def send(self, batch: Sequence[Sending]) -> Bound:
        """Return the statement that inserts a batch of messages, in this order."""
        if len(batch) == 1:
            return self._send_one_of(batch[0])
        sends = [item for item in batch if isinstance(item, Send)]
        if len(sends) == len(batch):
            return self._send.bind(_dumped(send_columns(sends)))
        return self._publish.bind(_dumped(publish_columns(batch)))

    def join(self, joins: Sequence[Join]) -> Bound:
        """Return the statement that inserts or renews memberships."""
        return self._join.bind(_dumped(membership_columns(joins)))

    def leave(self, leaves: Sequence[Leave]) -> Bound:
        """Return the statement that deletes memberships, and selects how many it missed."""
        return self._leave.bind(_dumped(membership_columns(leaves)))

    def _send_one_of(self, item: Sending) -> Bound:
        if isinstance(item, Send):
            where = topic(self._secret, "node" if node_of(item.channel) else "queue", self._prefix, item.recipient)
            names = {
                "recipient": item.recipient,
                "channel": item.channel,
                "topic": where,
                "sign": sign_of(self._secret),
            }
            return self._send_one.bind({"payload": item.payload, **_encoded(names)})
        return self._publish_one.bind({"payload": item.payload, **_encoded({"group_name": item.group})})


class _Statement:
    def __init__(self, name: str, statements: Mapping[str, Compiled], **constants: Any) -> None:
        self.name = f"channels_pg_sa_{name}"
        self._find: Callable[[], Compiled] = lambda: statements[name]  # later: it is compiled then
        self._constants = constants

    @functools.cached_property
    def _columns(self) -> list[str]:
        return [parameter for parameter in self._find().parameters if parameter not in self._constants]

    @functools.cached_property
    def declaration(self) -> str:
        statement = self._find()
        values = {**statement.literals, **self._constants}
        text = {
            **{parameter: sql.Literal(value).as_string(None) for parameter, value in values.items()},
            **{column: f"${place}" for place, column in enumerate(self._columns, 1)},
        }
        return f"PREPARE {self.name} AS {statement.sql % text}"

    def bind(self, values: Mapping[str, Buffer]) -> Bound:
        return Bound(self.name.encode(), [values[column] for column in self._columns])


def _encoded(names: Mapping[str, str]) -> dict[str, Buffer]:
    return {column: name.encode() for column, name in names.items()}


def _dumped(columns: Mapping[str, TextArray | BytesArray]) -> dict[str, Buffer]:
    return {column: dumped(array) for column, array in columns.items()}
