"""What the benchmark needs to know about a channel layer, and how it is built, warmed and closed."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from benchmarks.scenarios import Need, Scenario

AMPLE = 1_000_000
"""A capacity no scenario reaches: what is lost is then lost by the layer, not by its configuration."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one case runs: the server's URL, a prefix no other case uses, and a secret when messages are encrypted."""

    url: str
    prefix: str
    secret: str | None = None


class Peer:
    """One channel layer under measurement. Subclasses say how it differs from the plainest case."""

    name: ClassVar[str]
    package: ClassVar[str]
    default_url: ClassVar[str] = ""
    url_variable: ClassVar[str] = ""
    only: ClassVar[frozenset[str]] = frozenset()
    """Names of the scenarios this peer is for; empty means all."""
    one_process: ClassVar[bool] = False
    uses_postgres: ClassVar[bool] = False
    max_channels: ClassVar[int] = AMPLE
    beyond: ClassVar[str] = ""
    """Why it takes no part in scenarios with more than `max_channels` channels."""
    lacks: ClassVar[Mapping[Need, str]] = {}

    def absent(self, url: str) -> str | None:
        """Return why this peer cannot run here, or None."""
        if importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        return _unreachable(url) if url else None

    def refusal(self, scenario: Scenario) -> str | None:
        """Return why this peer takes no part in `scenario`, or None."""
        if self.only and scenario.name not in self.only:
            return "is a floor for other scenarios"
        for need in sorted(scenario.needs):
            if need in self.lacks:
                return self.lacks[need]
        if scenario.channels > self.max_channels:
            return self.beyond
        return None

    def install(self, url: str) -> None:
        """Make the server ready; called once, in a process of its own."""

    def clear(self, url: str) -> None:
        """Remove what earlier cases left on the server; called before each case, in the coordinating process."""

    def fill(self, place: Place, memberships: int) -> None:
        """Put `memberships` memberships of other processes on the server, 100 in each group."""
        raise NotImplementedError

    def build(self, place: Place) -> Any:
        """Return a new layer."""
        raise NotImplementedError

    async def open(self, layer: Any) -> None:
        """Do what the layer needs before many coroutines use it at once."""

    async def close(self, layer: Any) -> None:
        """Close the layer the way its documentation says."""

    def send_plainly(self, layer: Any, channel: str, message: dict[str, Any]) -> None:
        """Send without an event loop and without async_to_sync."""
        raise NotImplementedError

    def close_plainly(self, layer: Any) -> None:
        """Close a layer that was used from a process without an event loop."""


def port_of(url: str) -> int | None:
    """Return the TCP port in `url`, or None for a server without one."""
    return urlsplit(url).port


def _unreachable(url: str) -> str | None:
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        return None
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=2.0).close()
    except OSError as error:
        return f"no server at {parts.hostname}:{parts.port} ({error.strerror or error})"
    return None


async def first_receive(layer: Any, ready: asyncio.Event) -> None:
    """Let one receive() start a listener and wait for it, so that others find it running."""
    pending = asyncio.ensure_future(layer.receive(await layer.new_channel()))
    await ready.wait()
    pending.cancel()
    await asyncio.wait({pending})
