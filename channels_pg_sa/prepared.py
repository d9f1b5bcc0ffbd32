"""Statements prepared under names of their own, for libpq itself.

psycopg adapts a statement's parameters and looks for its plan each time; for one message that takes about as long as
the server needs for it.

https://www.postgresql.org/docs/current/sql-prepare.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.adapt import Buffer

from .arrays import BytesArray, TextArray, dumped
from .compiled import Compiled, compiled
from .queries import GroupSend, Send, publish_columns, send_columns


@dataclass(frozen=True, slots=True)
class Bound:
    """A prepared statement's name, and its parameters in binary format."""

    name: bytes
    values: Sequence[Buffer]


class PreparedSends:
    """The statements that send, with all but the messages written into them.

    Args:
        schema: where the tables are; None leaves it to the connection's search_path.
        constants: the parameters that are the same for all messages.
    """

    def __init__(self, schema: str | None, **constants: Any) -> None:
        statements = compiled(schema)
        self._send = _Prepared("channels_pg_sa_send", statements["send"], constants)
        self._publish = _Prepared("channels_pg_sa_publish", statements["publish"], {**constants, "queues": True})

    @property
    def prepare(self) -> str:
        """The SQL that prepares them in a session."""
        return f"{self._send.declaration}; {self._publish.declaration}"

    @property
    def deallocate(self) -> str:
        """The SQL that takes them out of it."""
        return f"DEALLOCATE {self._send.name}; DEALLOCATE {self._publish.name}"

    def bind(self, batch: Sequence[Send | GroupSend]) -> Bound:
        """Return the statement that inserts a batch of messages, in this order."""
        sends = [item for item in batch if isinstance(item, Send)]
        if len(sends) == len(batch):
            return self._send.bind(send_columns(sends))
        return self._publish.bind(publish_columns(batch))


class _Prepared:
    def __init__(self, name: str, statement: Compiled, constants: Mapping[str, Any]) -> None:
        self.name = name
        self._columns = [parameter for parameter in statement.parameters if parameter not in constants]
        values = {**statement.literals, **constants}
        text = {
            **{parameter: sql.Literal(value).as_string(None) for parameter, value in values.items()},
            **{column: f"${place}" for place, column in enumerate(self._columns, 1)},
        }
        self.declaration = f"PREPARE {name} AS {statement.sql % text}"

    def bind(self, columns: Mapping[str, TextArray | BytesArray]) -> Bound:
        return Bound(self.name.encode(), [dumped(columns[column]) for column in self._columns])
