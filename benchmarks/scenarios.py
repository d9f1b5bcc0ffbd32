"""The scenarios, as data: which processes take part, what each does, and what a layer must be able to do for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Need = Literal["direct", "group", "queue", "encryption", "async_to_sync", "blocking", "idle", "bulk"]
Metric = Literal["rate", "p50_ms", "last_p50_ms", "call_p50_ms", "bytes_each"]

FRAME = 100
LARGE = 32_000
HUGE = 900_000


@dataclass(frozen=True, slots=True)
class Receiver:
    """Read `channels` process-specific channels, all of them members of `group` if that is given."""

    channels: int
    group: str | None = None


@dataclass(frozen=True, slots=True)
class QueueWorker:
    """Read one normal channel in competition with others."""

    queue: str


@dataclass(frozen=True, slots=True)
class Sender:
    """Send `payload` bytes `concurrency` at a time, to `group`, to `queue`, or to the receivers' channels in turn.

    It stops after `limit` messages or when the case's time is over. With `every` (seconds) it sends at a fixed pace.
    """

    concurrency: int = 1
    payload: int = FRAME
    limit: int = 500_000
    group: str | None = None
    queue: str | None = None
    every: float | None = None


@dataclass(frozen=True, slots=True)
class BlockingSender:
    """Send from a process without an event loop: through `async_to_sync`, or by the layer's own `plain` function."""

    plain: bool = False
    payload: int = FRAME
    limit: int = 500_000


@dataclass(frozen=True, slots=True)
class Pinger:
    """Send to the echo and wait for the answer, one at a time."""

    payload: int = FRAME
    limit: int = 100_000


@dataclass(frozen=True, slots=True)
class Echo:
    """Send each message back to the channel it names."""


@dataclass(frozen=True, slots=True)
class Joiner:
    """Join and leave groups, `concurrency` calls at a time.

    Of `groups` groups each has several members in the process all the time; with None each caller has its own.
    """

    concurrency: int = 64
    groups: int | None = None


@dataclass(frozen=True, slots=True)
class Idler:
    """Open `channels` channels, each with a pending receive(), and weigh the process."""

    channels: int


@dataclass(frozen=True, slots=True)
class WebServer:
    """Serve `clients` WebSockets with Uvicorn; the consumer of each is in `group` and forwards what it gets."""

    clients: int
    group: str


@dataclass(frozen=True, slots=True)
class WebClients:
    """Open `clients` WebSockets to the server and read them: a process that has no layer."""

    clients: int


Role = Receiver | QueueWorker | Sender | BlockingSender | Pinger | Echo | Joiner | Idler | WebServer | WebClients


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of the table: roles (a process each), the needs of the scenario and the number it is about.

    It sends `stretch` times as long as the others.
    """

    name: str
    title: str
    roles: tuple[Role, ...]
    needs: frozenset[Need]
    metric: Metric = "rate"
    fan_out: int = 1
    encrypted: bool = False
    memberships: int = 0
    quick: bool = True
    stretch: float = 1.0

    @property
    def channels(self) -> int:
        """Return how many channels the receivers of this scenario open together; a WebSocket's consumer has one."""
        direct = sum(role.channels for role in self.roles if isinstance(role, Receiver))
        return direct + sum(role.clients for role in self.roles if isinstance(role, WebClients))


def _needs(*needs: Need) -> frozenset[Need]:
    return frozenset(needs)


def _direct(name: str, title: str, sender: Sender, *, encrypted: bool = False) -> Scenario:
    channels = min(sender.concurrency, 64)
    needs = _needs("direct", "encryption") if encrypted else _needs("direct")
    return Scenario(name, title, (Receiver(channels), sender), needs, encrypted=encrypted)


def _group(processes: int, members: int, limit: int, *, concurrency: int = 1) -> Scenario:
    name = f"group_{processes}x{members}"
    title = f"group_send to {processes} x {members:,} members"
    if concurrency > 1:
        name, title = f"{name}_by_{concurrency}", f"{concurrency} at a time: {title}"
    sender = Sender(concurrency, group="room", limit=limit)
    roles: tuple[Role, ...] = (*(Receiver(members, group="room"),) * processes, sender)
    return Scenario(name, title, roles, _needs("direct", "group"), fan_out=processes * members)


def _paced(scenario: Scenario, per_second: int) -> Scenario:
    *receivers, sender = scenario.roles
    if not isinstance(sender, Sender):
        raise TypeError(f"{scenario.name} does not end with a sender")
    return replace(
        scenario,
        name=f"{scenario.name}_paced",
        title=f"{scenario.title}, {per_second} a second",
        roles=(*receivers, replace(sender, every=1 / per_second)),
        metric="last_p50_ms",
    )


def behind_uvicorn(clients: int, *, every: float = 1.0) -> Scenario:
    """Return the scenario of one Uvicorn and `clients` WebSockets that all get a broadcast, one in `every` seconds."""
    return Scenario(
        f"uvicorn_{clients}",
        f"Uvicorn with {clients:,} WebSocket clients, a broadcast every {every:g} s",
        (WebServer(clients, group="room"), WebClients(clients), Sender(group="room", every=every)),
        _needs("direct", "group"),
        metric="last_p50_ms",
        fan_out=clients,
        stretch=5.0,
    )


def _among(memberships: int) -> Scenario:
    return Scenario(
        f"among_{memberships}",
        f"group_send to 100 members among {memberships:,} memberships",
        (Receiver(100, group="room"), Sender(group="room", limit=2_000, every=0.01)),
        _needs("direct", "group", "bulk"),
        metric="call_p50_ms",
        fan_out=100,
        memberships=memberships,
        quick=memberships <= 1_000,
    )


def _blocking(name: str, title: str, *, plain: bool) -> Scenario:
    needs = _needs("direct", "blocking") if plain else _needs("direct", "async_to_sync")
    return Scenario(name, title, (Receiver(1), BlockingSender(plain=plain)), needs)


def _idle(channels: int, *, quick: bool) -> Scenario:
    name = f"idle_{channels}"
    title = f"{channels:,} open channels, memory"
    return Scenario(name, title, (Idler(channels),), _needs("idle"), metric="bytes_each", quick=quick)


_GROUP_4X250 = _group(4, 250, 600)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("ping_pong", "round trip between two processes", (Echo(), Pinger()), _needs("direct"), metric="p50_ms"),
    _direct("send_1", "1 sender at a time", Sender(1)),
    _direct("send_64", "64 concurrent senders", Sender(64)),
    _direct("send_512", "512 concurrent senders", Sender(512)),
    _direct("send_64_encrypted", "64 concurrent senders, encrypted", Sender(64), encrypted=True),
    _direct("send_32kB", "32 kB messages, 16 senders", Sender(16, payload=LARGE, limit=4_000)),
    _direct("send_900kB", "900 kB messages, 4 senders", Sender(4, payload=HUGE, limit=200)),
    _group(1, 100, 4_000),
    _GROUP_4X250,
    _group(4, 250, 600, concurrency=8),
    _paced(_GROUP_4X250, 10),
    _group(1, 5_000, 100),
    _group(8, 1_250, 60),
    behind_uvicorn(500),
    Scenario(
        "queue_4",
        "4 workers on one normal channel",
        (*(QueueWorker("jobs"),) * 4, Sender(64, queue="jobs", limit=60_000)),
        _needs("queue"),
    ),
    Scenario("joins", "joins and leaves, 64 at a time, a group each", (Joiner(),), _needs("group")),
    Scenario("joins_crowded", "joins and leaves, 64 at a time, 8 shared groups", (Joiner(groups=8),), _needs("group")),
    _blocking("async_to_sync", "async_to_sync(send), one thread", plain=False),
    _blocking("plain_sync", "plain synchronous send, one thread", plain=True),
    _among(1_000),
    _among(1_000_000),
    _idle(10_000, quick=True),
    _idle(100_000, quick=False),
)
