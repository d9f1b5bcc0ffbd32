"""A channel layer without Django: names, messages and groups over one node of this process."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Unpack

from . import errors
from .closing import Closing
from .codec import Message, MessageCodec
from .config import Config, Settings, settings_from_mapping
from .connections.connection import CleanConnection
from .directory import Directory, Rows
from .entry import Entry
from .errors import DecodeError
from .names import check_channel, check_group, check_prefix, new_channel, new_node
from .node import Node, is_thread_of
from .receiving.outages import Announcements
from .statements.compiled import Compiled, compiled
from .transactional import TransactionalSends

CHILD_PRIORITY = 10
"""When a child process of multiprocessing's closes its layers: with its queues, and after its pools."""
TAKES = 64
"""Messages that readers may take without giving other tasks a turn."""


class Layer(TransactionalSends, Directory, Closing):
    """Send and receive messages through PostgreSQL; one object serves every thread and event loop of a process.

    It opens no connection before it is used, and closes all of them in close(), at the end of an `async with`, at exit
    or with the last reference.

    Args:
        config: the keys of docs/configuration.md, at least `url`.

    Raises:
        ConfigurationError: a key is unknown or its value wrong; the message names it.
    """

    extensions: ClassVar[list[str]] = ["groups", "flush"]
    ChannelFull: type[errors.ChannelFull] = errors.ChannelFull
    MessageTooLarge: type[errors.MessageTooLarge] = errors.MessageTooLarge

    def __init__(self, **config: Unpack[Config]) -> None:
        self._set_up(settings_from_mapping(config))

    def _set_up(self, settings: Settings) -> None:
        self._settings = settings
        self._codec = MessageCodec(settings.serializer, settings.symmetric_encryption_keys)
        self._takes = 0
        self._start_afresh()
        with _LAYERS_LOCK:
            _LAYERS.add(self)

    def _start_afresh(self) -> None:
        """Become a node of its own, in a new process too: what a parent has opened is never touched in a child."""
        self._node_id = new_node()
        self._node: Node | None = None
        self._closing: weakref.WeakSet[Node] = weakref.WeakSet()  # which live for as long as they close
        self._lock = threading.RLock()  # a signal's handler that closes the layer must at least not wait for itself
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._pid = os.getpid()  # at last: other threads of a child look at it

    # Messages ------------------------------------------------------------------------------------

    async def send(self, channel: str, message: Message) -> None:
        """Send a message to a channel; when this returns it is committed, unless `confirm_sends` is off.

        Args:
            channel: its name.
            message: a dict of str keys, with str, bytes, int, float, bool, None, lists and dicts as values.

        Raises:
            TypeError: the name or the message is not allowed; the text tells the place.
            ChannelFull: the channel has a capacity, and so many messages wait in its mailbox.
            MessageTooLarge: its encoding is over 16 MiB.
            SendError: it was not done within `send_timeout` seconds, or refused, or the connection was lost; tells
                whether it may have been sent.
            SchemaError: the tables are missing or too old.
            LayerClosed: the layer was closed meanwhile.

        https://channels.readthedocs.io/en/stable/channel_layer_spec.html
        """
        call = self._open().send(check_channel(channel), self._codec.encode(message), asyncio.get_running_loop())
        self._check_taken(channel, await call)

    def send_sync(self, channel: str, message: Message) -> None:
        """Send a message from code without an event loop; blocks the thread, otherwise as `send`.

        Raises:
            RuntimeError: the thread is the layer's own, which calls logging handlers and PASSWORD functions; or there
                is no outcome 5 s after `send_timeout`, because that thread is dead. So for every method whose name ends
                with _sync and that waits for the database.
        """
        call = self._open_to_wait().send(check_channel(channel), self._codec.encode(message), None)
        self._check_taken(channel, call.wait())

    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel; may be cancelled at any moment without losing one.

        It outlasts every outage of the database.

        Args:
            channel: its name, or, ending with `!`, what the names of channels begin with.

        Raises:
            TypeError: the name is not allowed.
            ValueError: the channel belongs to another process.
            SchemaError: the tables are missing or too old.
            PoolerError: the listening connection passes through a pooler in transaction mode.
            ConfigurationError: `listen_url` leads to another database.
            PrivilegeError: the role lacks a right.
            LayerClosed: the layer was closed meanwhile.
        """
        node = self._open()
        while True:
            self._takes += 1
            if self._takes % TAKES == 0:
                await asyncio.sleep(0)
            entry = node.take(channel) or await node.receive(check_channel(channel))
            try:
                return entry.copy() if entry.copy is not None else self._decode(entry)
            except DecodeError as error:
                node.drops.add("undecodable", f"from {channel}, which could not be decoded: {error}")

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel that only this process reads.

        Args:
            prefix: what the name begins with, at most 53 characters.

        Raises:
            TypeError: the prefix is not allowed, or too long.
        """
        return new_channel(check_prefix(prefix), self.node)

    # Groups --------------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member of a group, or renew its membership.

        It lasts until group_discard(), until the channel's process is gone, or for `group_expiry` seconds if set.

        Args:
            group: its name.
            channel: the name of the member.

        Raises:
            TypeError, SendError, SchemaError, LayerClosed: as `send`.
            PoolerError, PrivilegeError, ConfigurationError: as `receive`, for a channel of this process's own, which
                hears of its groups.
        """
        await self._open().join(check_group(group), check_channel(channel), asyncio.get_running_loop())

    def group_add_sync(self, group: str, channel: str) -> None:
        """Join from code without an event loop; otherwise as `group_add`."""
        self._open_to_wait().join(check_group(group), check_channel(channel), None).wait()

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership; does nothing if there is none.

        A channel of this process's own leaves in the end even if this fails or is cancelled, unless it joins again.

        Args:
            group: its name.
            channel: the name of the member.

        Raises:
            TypeError, SendError, SchemaError, LayerClosed: as `send`.
            PoolerError, PrivilegeError, ConfigurationError: as `receive`, for a channel of this process's own.
        """
        await self._open().leave(check_group(group), check_channel(channel), asyncio.get_running_loop())

    def group_discard_sync(self, group: str, channel: str) -> None:
        """Leave from code without an event loop; otherwise as `group_discard`."""
        self._open_to_wait().leave(check_group(group), check_channel(channel), None).wait()

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to every member of a group; members over their capacity are left out.

        Args:
            group: its name.
            message: a dict, as for `send`.

        Raises:
            TypeError, MessageTooLarge, SendError, SchemaError, LayerClosed: as `send`.
        """
        await self._open().group_send(check_group(group), self._codec.encode(message), asyncio.get_running_loop())

    def group_send_sync(self, group: str, message: Message) -> None:
        """Send to a group from code without an event loop; otherwise as `group_send`."""
        self._open_to_wait().group_send(check_group(group), self._codec.encode(message), None).wait()

    # The whole -----------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget all messages and memberships of this layer's prefix, in the database and in every living process.

        A process that does not answer is not waited for longer than two seconds; the log tells which. A flush whose
        SendError says that it may have been done may yet be done, and take what was sent meanwhile.

        Raises:
            SendError, SchemaError, LayerClosed: as `send`.
            PoolerError, PrivilegeError, ConfigurationError: as `receive`.
        """
        await self._open().flush(asyncio.get_running_loop())

    def flush_sync(self) -> None:
        """Flush from code without an event loop; otherwise as `flush`."""
        self._open_to_wait().flush(None).wait()

    async def close(self) -> None:
        """Finish what was begun, leave all groups and close every connection.

        Pending receive() calls raise LayerClosed. A later call opens the layer again, as a new node; channels made
        before are dead. It waits up to 5 s for calls under way, half a second while the database is away, and at the
        worst takes 20 s. It raises nothing: what goes wrong is logged.
        """
        await asyncio.to_thread(self.close_sync)

    def close_sync(self) -> None:
        """Close from code without an event loop; otherwise as `close`."""
        with self._lock:
            finalizer, node = self._finalizer, self._node
            self._finalizer = self._node = None
            if node is not None:
                self._closing.add(node)
                # Whoever opens it anew meanwhile must not be taken for the node that leaves.
                self._node_id = new_node()
            closing = list(self._closing)
        if finalizer is not None:
            finalizer()
        for node in closing:  # others may be closing it, or have been interrupted, while they opened it too
            node.close()

    @property
    def node(self) -> str:
        """The id of this process's node, which stands in the names of its channels."""
        self._check_process()
        return self._node_id

    @property
    def counters(self) -> Mapping[str, int]:
        """How many messages this process has `received` since it opened the layer, and dropped, by reason.

        The reasons are `expired`, `no_member`, `vanished`, `malformed`, `undecodable`, `over_capacity` and `unsent`;
        docs/configuration.md explains them. One that has not occurred is missing.
        """
        node = self._node  # which another thread may close meanwhile
        return Counter() if node is None else node.counters

    def __repr__(self) -> str:
        node = self._node
        state = "closed" if node is None else node.state
        return f"<{type(self).__name__} node={self._node_id} {state}>"

    # Parts ---------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        """Begin afresh in a process that was forked behind Python's back, by a server written in C such as uWSGI."""
        if self._pid != os.getpid():
            with _FORK_LOCK:  # by one of its threads
                _after_fork()

    def _open(self) -> Node:
        """Return the node, and make it if there is none."""
        self._check_process()
        node = self._node
        if node is None or self._finalizer is None:
            with self._lock:
                if (node := self._node) is None:
                    node = self._node = Node(self._settings, self._node_id, announcements=self._announcements())
                if self._finalizer is None:  # whoever made the node may have been interrupted just then
                    self._finalizer = weakref.finalize(self, Node.close, node)
                    _close_in_child()
        return node

    def _open_to_wait(self) -> Node:
        """Return the node for a thread that will wait for it.

        Raises:
            RuntimeError: it is the node's own, which would wait for itself.
        """
        if is_thread_of(self._node_id):  # also while another thread makes the node, and has the lock
            raise RuntimeError(
                "The layer's own thread, of a logging handler or a PASSWORD function, cannot wait for it."
            )
        return self._open()

    async def _rows(self, name: str, **parameters: str) -> Rows:
        rows: Rows = await self._open().read(self._listing(name, parameters), asyncio.get_running_loop())
        return rows

    def _rows_sync(self, name: str, **parameters: str) -> Rows:
        rows: Rows = self._open_to_wait().read(self._listing(name, parameters), None).wait()
        return rows

    def _listing(self, name: str, parameters: Mapping[str, str]) -> Compiled:
        return compiled(self._settings.schema)[name].given(prefix=self._settings.prefix, **parameters)

    def _decode(self, entry: Entry) -> Message:
        plain = any(pattern.fullmatch(entry.name) for pattern in self._settings.allow_unencrypted)
        if not entry.is_shared:
            return self._codec.decode(entry.payload, may_be_plain=plain)
        entry.copy = self._codec.copier(entry.payload, may_be_plain=plain)
        return entry.copy()

    def _announcements(self) -> Announcements:
        """Encode what local channels get when the connection is lost, and when it is back."""
        kinds = (self._settings.on_disconnect, self._settings.on_reconnect)
        return Announcements(*(None if kind is None else self._codec.encode({"type": kind}) for kind in kinds))

    def _check_taken(self, channel: str, taken: object) -> None:
        if taken is False:
            raise self.ChannelFull(channel, self._settings.capacity_of(channel) or 0)


_LAYERS: weakref.WeakSet[Layer] = weakref.WeakSet()
_LAYERS_LOCK = threading.RLock()  # a signal's handler may close the layers while its thread makes one
_FORK_LOCK = threading.Lock()
_AT_EXIT: list[Any] = []
"""What closes them in a child process of multiprocessing's: one thing at most."""
_PARENTS: list[Any] = []
"""What a child must neither use nor free: it would close its parent's sockets, or complain of its loops."""


def close_layers() -> None:
    """Close every layer that this process has open, and so every connection: before a test database is dropped, say.

    One after the other, each as Layer.close_sync() does.
    """
    with _LAYERS_LOCK:
        layers = list(_LAYERS)
    for layer in layers:
        layer.close_sync()


def _close_in_child() -> None:
    """Have the layers closed when a child process of multiprocessing's ends, which calls nothing else at its exit."""
    process = sys.modules.get("multiprocessing.process")  # which a child has loaded
    if not _AT_EXIT and process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        _AT_EXIT.append(Finalize(None, close_layers, exitpriority=CHILD_PRIORITY))


def _after_fork() -> None:
    global _LAYERS_LOCK  # noqa: PLW0603 - a thread that is not in the child may have had it
    _LAYERS_LOCK = threading.RLock()
    _AT_EXIT.clear()
    for layer in list(_LAYERS):
        if layer._pid == os.getpid():  # noqa: SLF001 - another thread has done that
            continue
        if layer._finalizer is not None:  # noqa: SLF001
            layer._finalizer.detach()  # noqa: SLF001
        _PARENTS.append(layer._node)  # noqa: SLF001
        layer._start_afresh()  # noqa: SLF001
    CleanConnection.let_go_of_parents()


os.register_at_fork(after_in_child=_after_fork)
