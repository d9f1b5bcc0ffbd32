"""Sends that take part in the caller's own transaction, as SQLAlchemy statements or as SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Insert, Interval, LargeBinary, Text, literal
from typing_extensions import LiteralString

from .codec import Message, MessageCodec
from .config import Settings
from .names import check_channel, check_group, recipient_of
from .schema import tables
from .statements.compiled import compiled
from .statements.one_message import insert_group_message, insert_message


class TransactionalSends:
    """The part of a Layer and of a Publisher that makes statements of messages and sends nothing itself.

    Whoever executes such a statement sends the message if and when their transaction commits: not after a rollback,
    be it to a savepoint, and never before others can see what else the transaction has written.

    The sender does not look at a channel's `capacity`; members of a group that are full are left out all the same.
    `expiry` counts from the execution: a message whose transaction goes on for longer than that is not read any more.

    https://www.postgresql.org/docs/current/sql-notify.html
    """

    _settings: Settings
    _codec: MessageCodec

    def send_statement(self, channel: str, message: Message) -> Insert:
        """Return a statement that sends a message to a channel.

        Args:
            channel: its name.
            message: a dict, as for `send`.

        Returns:
            What the execute() of a Connection, AsyncConnection, Session or AsyncSession takes, whatever the driver.
            Each execution sends once more.

        Raises:
            TypeError: the name or the message is not allowed.
            MessageTooLarge: its encoding is over 16 MiB.
        """
        recipient = literal(recipient_of(check_channel(channel)), Text)
        there = tables(self._settings.schema)
        return insert_message(there, recipient=recipient, channel=literal(channel, Text), **self._values(message))

    def group_send_statement(self, group: str, message: Message) -> Insert:
        """Return a statement that sends a message to the members that a group has when it is executed.

        Whoever joins or leaves between that and the commit may get the message or not.

        Args, returns, raises: as `send_statement`.
        """
        addressed = literal(check_group(group), Text)
        return insert_group_message(tables(self._settings.schema), group=addressed, **self._values(message))

    def send_sql(self, channel: str, message: Message) -> tuple[LiteralString, Mapping[str, Any]]:
        """Return SQL and parameters that send a message, for a cursor of psycopg or psycopg2.

        So: `cursor.execute(*layer.send_sql("jobs", {"type": "job"}))`.

        Args, raises: as `send_statement`.
        """
        payload = self._codec.encode(message)
        return self._sql("send", recipient=[recipient_of(check_channel(channel))], channel=[channel], payload=[payload])

    def group_send_sql(self, group: str, message: Message) -> tuple[LiteralString, Mapping[str, Any]]:
        """Return SQL and parameters that send a message to a group, for a cursor of psycopg or psycopg2.

        Args, raises: as `group_send_statement`.
        """
        check_group(group)
        nothing = {"recipient": [None], "channel": [None]}
        return self._sql("publish", group_name=[group], payload=[self._codec.encode(message)], queues=True, **nothing)

    def _values(self, message: Message) -> dict[str, Any]:
        return {
            "prefix": literal(self._settings.prefix, Text),
            "payload": literal(self._codec.encode(message), LargeBinary),
            "expiry": literal(self._settings.message_life, Interval),
        }

    def _sql(self, name: str, **parameters: Any) -> tuple[LiteralString, Mapping[str, Any]]:
        constants = {"prefix": self._settings.prefix, "expiry": self._settings.message_life}
        statement = compiled(self._settings.schema)[name].given(**constants, **parameters)
        return statement.sql, statement.literals
