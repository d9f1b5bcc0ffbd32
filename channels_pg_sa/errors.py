"""The exceptions of this package, and what errors show."""

from __future__ import annotations

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


class ChannelLayerError(Exception):
    """Base of this package's exceptions.

    A wrong name or message is a TypeError, and to read a channel of another process a ValueError.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Let task queues and process pools pickle it, whatever its constructor takes."""
        return _remake, (type(self), self.args, vars(self).copy())


def _remake(kind: type[ChannelLayerError], texts: tuple[Any, ...], facts: dict[str, Any]) -> ChannelLayerError:
    error = kind.__new__(kind, *texts)
    vars(error).update(facts)
    return error


def words_of(error: BaseException) -> str:
    """Return what an error says, or its name if it says nothing; of the server's errors the message alone.

    Their context would tell topics, which are secrets: it quotes the statement that LISTENs.
    """
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return primary or str(error).strip() or type(error).__name__


def short(value: object) -> str:
    """Return a value as an error shows it: not at full length, whoever it came from."""
    return _SHORT.repr(value)


class ConfigurationError(ChannelLayerError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class SchemaError(ChannelLayerError):
    """The database lacks the tables, has them at another revision, or has not all of them.

    Args:
        found: the revision in the database, None if there are no tables, "" if they do not tell one.
        needed: the revision this version of the package works with.
        database: its name, None if that is not known.
        schema: where the tables were looked for, None for the search_path.
        reason: what the server misses, if the revision is right.
    """

    def __init__(
        self,
        found: str | None,
        needed: str,
        *,
        database: str | None = None,
        schema: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.found = found
        self.needed = needed
        self.database = database
        self.schema = schema
        self.reason = reason
        name = "The database" if not database else f'The database "{database}"'
        super().__init__(f"{name} {_state(found, needed, schema, reason)}")

    @property
    def is_outdated(self) -> bool:
        """Whether `upgrade` mends it: there are no tables, or older ones."""
        return self.found is None or "" < self.found < self.needed


def _state(found: str | None, needed: str, schema: str | None, reason: str | None) -> str:
    where, option = ("", "") if schema is None else (f' in the schema "{schema}"', f" --schema {schema}")
    if found == "":
        state = (
            f"has channels_pg_sa tables{where}, but in channels_pg_sa_installation no row, or none that this role may "
            "see: they are a copy without data, or were truncated, or have row level security."
        )
        remedy = (
            "If they are as this version makes them, add the row: INSERT INTO channels_pg_sa_installation (revision) "  # noqa: S608
            f"VALUES ('{needed}'); and if channels_pg_sa_version is empty, INSERT INTO channels_pg_sa_version VALUES "
            f"('{needed}')."
        )
        return f"{state} {remedy}"
    if found == needed:
        return (
            f"is at schema revision {found}{where}, but not all of it is as it should be: {reason}. Mend that, or make "
            f"all of it again: `channels-pg-sa downgrade base{option}`, then `upgrade{option}`. If it was the schema's "
            "name that changed, give it back: the functions hold it."
        )
    state = "has no channels_pg_sa tables" if found is None else f"is at schema revision {found}"
    remedy = (
        "Run `manage.py channels_pg_sa upgrade` (Django; with `--layer` for another than the default) or "
        f"`channels-pg-sa upgrade{option}`, or the migrations of the project that keeps these tables; for "
        '`manage.py test` set TEST_RUNNER = "channels_pg_sa.testing.Runner", and for pytest see docs/configuration.md.'
    )
    if found is not None and found > needed:
        remedy = "A newer version has made the tables: update the package."
    return f"{state}{where}; this version of channels_pg_sa needs revision {needed}. {remedy}"


class PrivilegeError(ChannelLayerError):
    """The role may not do what a process that receives has to do.

    Args:
        reason: what the server says.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"The role of the layer's connections lacks a right: {reason}. A process that receives or joins groups "
            "wants GRANT USAGE ON SCHEMA of the tables; SELECT, INSERT, UPDATE, DELETE ON channels_pg_sa_message, "
            "channels_pg_sa_membership, channels_pg_sa_node; and SELECT ON channels_pg_sa_installation "
            "(docs/sqlalchemy.md)."
        )


class PoolerError(ChannelLayerError):
    """LISTEN goes through a pooler that hands the session to others, so nothing would ever be heard."""

    def __init__(self) -> None:
        super().__init__(
            "The listening connection passes through a pooler in transaction mode (PgBouncer?), where LISTEN hears "
            'nothing. Give the layer a direct address of the server: "listen_url": "postgresql://…".'
        )


class MessageTooLarge(ChannelLayerError, ValueError):
    """The encoded message is over the limit.

    Args:
        size: bytes that the encoded message has at least. One that must be too large is not encoded to learn the rest.
        limit: the largest size accepted, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"The encoded message has at least {size:,} bytes; the limit is {limit:,}. Send it in parts.")


class ChannelFull(ChannelLayerError):
    """As many messages to the channel wait to be read as its capacity allows; this one was not sent.

    Args:
        channel: its name.
        capacity: how many may wait.
    """

    def __init__(self, channel: str, capacity: int) -> None:
        self.channel = channel
        self.capacity = capacity
        super().__init__(f"{channel} has as many unread messages as its capacity allows: {capacity}")


class SendError(ChannelLayerError):
    """A send, or another call, was not done within `send_timeout`, was refused, or lost its connection.

    Args:
        maybe_sent: False if certainly nothing was done; True if the time was over, or the connection died, while the
            statement ran, so that nobody can tell whether it was committed.
        waited: seconds since the call.
        reason: what the driver or the server says, and what helps if that is known; None if they say nothing.
    """

    def __init__(self, *, maybe_sent: bool, waited: float, reason: str | None = None) -> None:
        self.maybe_sent = maybe_sent
        self.waited = waited
        self.reason = reason
        outcome = "It may have been done" if maybe_sent else "Nothing was done"
        super().__init__(f"{outcome}, after {waited:.1f} s: {reason or 'the database does not answer'}")


class LayerClosed(ChannelLayerError):
    """The layer was closed, or is being closed, under the call; what was under way may have been done."""


class DecodeError(ChannelLayerError, ValueError):
    """A payload is no message that this layer can read; receive() counts and drops it, and goes on."""
