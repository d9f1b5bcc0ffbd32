"""Sending for programs that do not receive: a Django-free service, a job, a script."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql import Executable
from typing_extensions import Unpack

from .closing import Closing
from .codec import Message, MessageCodec
from .config import Config, check_keys, settings_from_mapping
from .directory import Directory, Rows
from .errors import ConfigurationError
from .layer import Layer
from .names import check_channel, check_group, recipient_of
from .schema import tables
from .statements import listings, one_message
from .transactional import TransactionalSends

_WITH_ENGINE = frozenset({"prefix", "expiry", "symmetric_encryption_keys", "serializer", "schema"})


class Publisher(TransactionalSends, Directory, Closing):
    """Send to the channels and groups of a layer; one object serves every thread and event loop of a process.

    With a `url` it has connections of its own, opened at the first send, on which the sends of all callers go together
    in batches. With an `engine` it uses that, one short transaction for each send. For sends within a transaction of
    yours, `send_statement` and `group_send_statement`, either will do, and no connection is used.

    Args:
        engine: the service's own SQLAlchemy Engine or AsyncEngine for PostgreSQL, whatever its driver.
        config: the keys of docs/configuration.md, as the layer has them. Beside an engine: `prefix`, `expiry`,
            `symmetric_encryption_keys`, `serializer` and `schema`; without one, all, at least `url`.

    Raises:
        ConfigurationError: a key is unknown or its value wrong; the message names it.
    """

    def __init__(self, *, engine: Engine | AsyncEngine | None = None, **config: Unpack[Config]) -> None:
        self._sender = Layer(**config) if engine is None else _EngineSender(engine, config)
        self._settings, self._codec = self._sender._settings, self._sender._codec  # noqa: SLF001 - one of each is enough

    async def send(self, channel: str, message: Message) -> None:
        """Send a message to a channel; when this returns it is committed, unless `confirm_sends` is off.

        Args:
            channel: its name.
            message: a dict of str keys, with str, bytes, int, float, bool, None, lists and dicts as values.

        Raises:
            TypeError, MessageTooLarge: as `Layer.send`.
            ChannelFull, SendError, SchemaError, LayerClosed: likewise, with connections of its own.
            sqlalchemy.exc.SQLAlchemyError: what the engine raises, in their place.
        """
        await self._sender.send(channel, message)

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to every member of a group; otherwise as `send`."""
        await self._sender.group_send(group, message)

    def send_sync(self, channel: str, message: Message) -> None:
        """Send a message from code without an event loop; otherwise as `send`.

        Raises:
            RuntimeError: as Layer.send_sync, with connections of its own.
            ConfigurationError: the engine is an AsyncEngine, whose connections belong to an event loop.
        """
        self._sender.send_sync(channel, message)

    def group_send_sync(self, group: str, message: Message) -> None:
        """Send to a group from code without an event loop; otherwise as `send_sync`."""
        self._sender.group_send_sync(group, message)

    async def close(self) -> None:
        """Finish what was begun and close every connection of its own; the engine, if it was given one, stays open."""
        await self._sender.close()

    def close_sync(self) -> None:
        """Close from code without an event loop; otherwise as `close`."""
        self._sender.close_sync()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} through {self._sender!r}>"

    async def _rows(self, name: str, **parameters: str) -> Rows:
        return await self._sender._rows(name, **parameters)  # noqa: SLF001 - another Directory

    def _rows_sync(self, name: str, **parameters: str) -> Rows:
        return self._sender._rows_sync(name, **parameters)  # noqa: SLF001 - another Directory


class _EngineSender:
    """What a Publisher asks of a Layer, done through an engine: each send is a transaction of its own."""

    def __init__(self, engine: Engine | AsyncEngine, config: Mapping[str, Any]) -> None:
        _check_engine(engine, config)
        self._engine = engine
        self._settings = settings_from_mapping(config, connect=dict)
        self._codec = MessageCodec(self._settings.serializer, self._settings.symmetric_encryption_keys)

    async def send(self, channel: str, message: Message) -> None:
        await self._run("send", **self._to_channel(channel, message))

    async def group_send(self, group: str, message: Message) -> None:
        await self._run("group_send", **self._to_group(group, message))

    def send_sync(self, channel: str, message: Message) -> None:
        self._run_sync("send", **self._to_channel(channel, message))

    def group_send_sync(self, group: str, message: Message) -> None:
        self._run_sync("group_send", **self._to_group(group, message))

    async def close(self) -> None:
        """Leave the engine to its owner."""

    def close_sync(self) -> None:
        """Leave the engine to its owner."""

    def __repr__(self) -> str:
        return repr(self._engine)

    async def _rows(self, name: str, **parameters: str) -> Rows:
        return await self._run(name, prefix=self._settings.prefix, **parameters)

    def _rows_sync(self, name: str, **parameters: str) -> Rows:
        return self._run_sync(name, prefix=self._settings.prefix, **parameters)

    def _to_channel(self, channel: str, message: Message) -> dict[str, Any]:
        recipient = recipient_of(check_channel(channel))
        return {"b_recipient": recipient, "b_channel": channel, **self._content(message)}

    def _to_group(self, group: str, message: Message) -> dict[str, Any]:
        return {"b_group": check_group(group), **self._content(message)}

    def _content(self, message: Message) -> dict[str, Any]:
        payload = self._codec.encode(message)
        return {"b_prefix": self._settings.prefix, "b_payload": payload, "b_expiry": self._settings.message_life}

    async def _run(self, name: str, **parameters: Any) -> Rows:
        if not isinstance(self._engine, AsyncEngine):
            return await asyncio.to_thread(self._run_sync, name, **parameters)
        async with self._engine.begin() as connection:
            result = await connection.execute(_statements(self._settings.schema)[name], parameters)
            return result.all() if result.returns_rows else ()

    def _run_sync(self, name: str, **parameters: Any) -> Rows:
        if not isinstance(self._engine, Engine):
            raise ConfigurationError(
                "This Publisher has an AsyncEngine, which works in coroutines only. Await the method without _sync, "
                'or give the Publisher an Engine or a "url".'
            )
        with self._engine.begin() as connection:
            result = connection.execute(_statements(self._settings.schema)[name], parameters)
            return result.all() if result.returns_rows else ()


@functools.cache
def _statements(schema: str | None) -> Mapping[str, Executable]:
    """Return what runs on an engine. The objects are kept: building one takes longer than sending."""
    there = tables(schema)
    return {**one_message.with_parameters(there), **listings.with_parameters(there)}


def _check_engine(engine: object, config: Mapping[str, Any]) -> None:
    if not isinstance(engine, (Engine, AsyncEngine)):
        raise ConfigurationError(  # not what it is: an address may hold a password
            f'"engine" must be a SQLAlchemy Engine or AsyncEngine, not of type {type(engine).__name__}. An address of '
            'the database is called "url" here.'
        )
    if engine.dialect.name != "postgresql":
        raise ConfigurationError(f'"engine" must be one for PostgreSQL, not {engine!r}.')
    if "url" in config:
        raise ConfigurationError('"url" and "engine" both say where the database is. Keep one.')
    check_keys(config)
    for key in config:
        if key not in _WITH_ENGINE:
            raise ConfigurationError(
                f'"{key}" is for a Publisher with connections of its own: give "url", not "engine".'
            )
