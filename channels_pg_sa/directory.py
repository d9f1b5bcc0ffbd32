"""Who is in which group, and which processes are alive."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.sql import Select

from .config import Settings
from .names import check_channel, check_group, node_of
from .schema import tables
from .statements import listings

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class LiveNode:
    """A layer that receives, in one process.

    Args:
        id: stands in the names of its channels.
        host: of its process.
        pid: of its process, on that host.
        version: of this package, there.
        started_at: when it began to receive, by the database's clock; with a time zone.
        seen_at: when it last gave a sign of life, likewise.
    """

    id: str
    host: str
    pid: int
    version: str
    started_at: dt.datetime
    seen_at: dt.datetime


class Directory:
    """The part of a Layer and of a Publisher that reads groups and nodes: at once, or as statements for the caller.

    A membership that has expired does not count, nor does that of a process that is gone: one that gave no sign of
    life for `lease` seconds. What comes back is what was committed a moment ago: members come and go meanwhile.

    The statements are SELECTs, which can be extended, joined and used as subqueries; channels_pg_sa.schema has the
    tables.

    Args of its methods:
        group, channel: names.

    Raises:
        TypeError: a name is not allowed.
        RuntimeError: of a method whose name ends with _sync, as Layer.send_sync.
        SendError: the database could not be asked within `send_timeout` seconds; a Publisher with an engine of its own
            raises what SQLAlchemy does.
        SchemaError: the tables are missing or too old.
        LayerClosed: the layer was closed meanwhile.
        ConfigurationError: of a method whose name ends with _sync, where a Publisher has an AsyncEngine.
    """

    _settings: Settings

    def group_channels_statement(self, group: str) -> Select[str]:
        """Return a statement that selects the channels in a group, in the order of their names."""
        return listings.group_channels(tables(self._settings.schema), self._settings.prefix, check_group(group))

    async def group_channels(self, group: str) -> list[str]:
        """Return the channels in a group, in the order of their names."""
        return [channel for (channel,) in await self._rows("group_channels", group=check_group(group))]

    def group_channels_sync(self, group: str) -> list[str]:
        """Return the channels in a group, in the order of their names, from code without an event loop."""
        return [channel for (channel,) in self._rows_sync("group_channels", group=check_group(group))]

    def group_count_statement(self, group: str) -> Select[int]:
        """Return a statement that selects how many channels are in a group."""
        return listings.group_count(tables(self._settings.schema), self._settings.prefix, check_group(group))

    async def group_count(self, group: str) -> int:
        """Return how many channels are in a group."""
        ((count,),) = await self._rows("group_count", group=check_group(group))
        return int(count)

    def group_count_sync(self, group: str) -> int:
        """Return how many channels are in a group, from code without an event loop."""
        ((count,),) = self._rows_sync("group_count", group=check_group(group))
        return int(count)

    def groups_of_statement(self, channel: str) -> Select[str]:
        """Return a statement that selects the groups that a channel is in, in the order of their names."""
        node = node_of(check_channel(channel))
        return listings.groups_of(tables(self._settings.schema), self._settings.prefix, channel, node)

    async def groups_of(self, channel: str) -> list[str]:
        """Return the groups that a channel is in, in the order of their names."""
        return [group for (group,) in await self._rows(**_of(check_channel(channel)))]

    def groups_of_sync(self, channel: str) -> list[str]:
        """Return the groups that a channel is in, by their names, from code without an event loop."""
        return [group for (group,) in self._rows_sync(**_of(check_channel(channel)))]

    def nodes_statement(self) -> Select[str, str, int, str, dt.datetime, dt.datetime]:
        """Return a statement that selects the fields of a LiveNode, of each that there is, the oldest first."""
        return listings.nodes(tables(self._settings.schema), self._settings.prefix)

    async def nodes(self) -> list[LiveNode]:
        """Return the nodes that receive now, of this layer's prefix, the oldest first."""
        return [LiveNode(*row) for row in await self._rows("nodes")]

    def nodes_sync(self) -> list[LiveNode]:
        """Return the nodes of this prefix that receive now, the oldest first, from code without an event loop."""
        return [LiveNode(*row) for row in self._rows_sync("nodes")]

    async def _rows(self, name: str, **parameters: str) -> Rows:
        """Run the statement of that name in `listings.with_parameters`, and return its rows."""
        raise NotImplementedError

    def _rows_sync(self, name: str, **parameters: str) -> Rows:
        raise NotImplementedError


def _of(channel: str) -> dict[str, str]:
    """Return the name of the statement that selects the groups of a channel, and its parameters."""
    node = node_of(channel)
    if node is None:
        return {"name": "groups_of", "channel": channel}
    return {"name": "groups_of_specific", "channel": channel, "node": node}
