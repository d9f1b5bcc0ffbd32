"""A service that has no Django: sends in every way there is, and prints what its own Layer receives."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Insert, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import channels_pg_sa
from channels_pg_sa import Layer, Publisher

Message = dict[str, Any]

CONFIG: dict[str, Any] = {"prefix": "shop", "symmetric_encryption_keys": ["k"], "serializer": "json"}
WEB = ("django", "channels", "asgiref")


def is_missing(name: str) -> bool:
    """Tell whether a module cannot be imported here."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return True
    return False


def order(way: str, to: str) -> Message:
    """Return the message that a way of sending sends."""
    return {"type": "order.changed", "way": way, "to": to, "data": b"\x00\xff"}


class Service:
    """Send to a channel of its own and to a group that has this channel, and `jobs`, as members."""

    def __init__(self, layer: Layer, channel: str) -> None:
        self.layer = layer
        self.channel = channel

    async def send(self, publisher: Publisher, way: str) -> None:
        """Send from this loop."""
        await publisher.send(self.channel, order(way, "channel"))
        await publisher.group_send("orders", order(way, "group"))
        await self.show()

    async def send_sync(self, publisher: Publisher, way: str) -> None:
        """Send from a thread that has no loop."""
        await asyncio.to_thread(publisher.send_sync, self.channel, order(way, "channel"))
        await asyncio.to_thread(publisher.group_send_sync, "orders", order(way, "group"))
        await self.show()

    async def execute(self, publisher: Publisher, target: AsyncConnection | AsyncSession, way: str) -> None:
        """Send within a transaction that is rolled back, and within one that is committed."""
        for end in (target.rollback, target.commit):
            for statement in self.statements(publisher, f"{way}, {end.__name__}"):
                await target.execute(statement)
            await end()
        await self.show()

    async def execute_sync(self, publisher: Publisher, target: Connection | Session, way: str) -> None:
        """Send within such transactions, without await."""
        for end in (target.rollback, target.commit):
            for statement in self.statements(publisher, f"{way}, {end.__name__}"):
                target.execute(statement)
            end()
        await self.show()

    def statements(self, publisher: Publisher, way: str) -> list[Insert]:
        """Return a send to the channel and one to the group."""
        return [
            publisher.send_statement(self.channel, order(way, "channel")),
            publisher.group_send_statement("orders", order(way, "group")),
        ]

    async def receive(self, channel: str) -> Message:
        """Receive, or end the program with the line that waits."""
        return await asyncio.wait_for(self.layer.receive(channel), 20)

    async def show(self) -> None:
        """Print what both members receive: each way sends one message to the channel, and then one to the group."""
        received = [await self.receive(channel) for channel in (self.channel, self.channel, "jobs")]
        ways, data = {message["way"] for message in received}, {message["data"] for message in received}
        print(*ways, "->", *(message["to"] for message in received), *data)

    async def ask(self, directory: Layer | Publisher, way: str) -> None:
        """Print who is there, as coroutines tell."""
        channels, groups = await directory.group_channels("orders"), await directory.groups_of(self.channel)
        pids = [node.pid for node in await directory.nodes()]
        self.show_directory(way, await directory.group_count("orders"), channels, groups, pids)

    def ask_sync(self, directory: Layer | Publisher, way: str) -> None:
        """Print who is there, without a loop."""
        channels, groups = directory.group_channels_sync("orders"), directory.groups_of_sync(self.channel)
        pids = [node.pid for node in directory.nodes_sync()]
        self.show_directory(way, directory.group_count_sync("orders"), channels, groups, pids)

    def show_directory(self, way: str, count: int, channels: list[str], groups: list[str], pids: list[int]) -> None:
        """Print who is there, without the names that chance has made."""
        known = sorted("own" if channel == self.channel else channel for channel in channels)
        print(way, "->", count, *known, *groups, *("here" if pid == os.getpid() else pid for pid in pids))


async def main(url: str, engine_url: str) -> None:
    """Do all of it on one database, and leave nothing open."""
    layer = Layer(url=url, **CONFIG)
    service = Service(layer, await layer.new_channel())
    for channel in (service.channel, "jobs"):
        await layer.group_add("orders", channel)
    print((await service.receive("from-django"))["text"])
    engine, async_engine = create_engine(engine_url), create_async_engine(engine_url)
    own, on_engine = Publisher(url=url, **CONFIG), Publisher(engine=engine, **CONFIG)
    on_async_engine = Publisher(engine=async_engine, **CONFIG)

    await service.send(own, "url")
    await service.send_sync(own, "url, sync")
    await service.send(on_engine, "Engine")
    await service.send_sync(on_engine, "Engine, sync")
    await service.send(on_async_engine, "AsyncEngine")

    with engine.connect() as connection:
        await service.execute_sync(own, connection, "Connection")
    async with async_engine.connect() as async_connection:
        await service.execute(own, async_connection, "AsyncConnection")
    with Session(engine) as session:
        await service.execute_sync(own, session, "Session")
    async with AsyncSession(async_engine) as async_session:
        await service.execute(own, async_session, "AsyncSession")

    directories: dict[str, Layer | Publisher] = {
        "Layer": layer,
        "url": own,
        "Engine": on_engine,
        "AsyncEngine": on_async_engine,
    }
    for way, directory in directories.items():
        await service.ask(directory, way)
        if directory is not on_async_engine:
            await asyncio.to_thread(service.ask_sync, directory, f"{way}, sync")

    await layer.send(service.channel, {"text": "nothing was left"})
    print((await service.receive(service.channel))["text"])
    for close in (own.close, on_engine.close, on_async_engine.close, layer.close, async_engine.dispose):
        await close()
    engine.dispose()


if __name__ == "__main__":
    print("not here:", *filter(is_missing, WEB))
    print("in this environment:", Path(channels_pg_sa.__file__).is_relative_to(sys.prefix))
    asyncio.run(main(*sys.argv[1:]))
