"""How table, memory and throughput stand a great many messages, and a transaction that keeps vacuum from its work."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psycopg

from channels_pg_sa import Layer
from tests.support.databases import query

from .report import MB, aligned

BURST = 2000
PARTS = 5
SIZE = "SELECT pg_total_relation_size('channels_pg_sa_message')"


async def measure(url: str, count: int) -> str:
    """Send half of the messages as they come, half while a transaction is open; return a table of both.

    Args:
        url: libpq URI of a database with the schema.
        count: of messages, each read; as many again go to channels that nobody reads, and expire.
    """
    rows = [["messages so far", "a second", "table", "memory"]]
    idle = await _half(url, count // 2, rows)
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM channels_pg_sa_message")
        rows.append(["with an open transaction", "", "", ""])
        held = await _half(url, count // 2, rows)
    return "\n".join([*aligned(rows), "", f"With the transaction open: {held / idle:.0%} of the throughput without."])


async def _half(url: str, count: int, rows: list[list[str]]) -> float:
    """Send and receive so many, add a row for each part, and return how many a second it were."""
    sender, reader = (Layer(url=url, expiry=2, heartbeat=1, lease=4) for _ in range(2))
    own, unread = await reader.new_channel(), [await reader.new_channel() for _ in range(100)]
    begun = time.monotonic()
    for part in range(PARTS):
        since, done = time.monotonic(), 0
        while done < count // PARTS:
            reading = asyncio.create_task(_read(reader, own, BURST))
            await asyncio.gather(*(sender.send(own, {"number": n, "text": "x" * 200}) for n in range(BURST)))
            await asyncio.gather(*(sender.send(unread[n % 100], {"text": "x" * 200}) for n in range(BURST)))
            await reading
            done += BURST
        ((size,),) = query(url, SIZE)
        pace = 2 * done / (time.monotonic() - since)
        rows.append([f"{2 * (part + 1) * done:,}", f"{pace:,.0f}", f"{size / MB:.1f} MB", f"{_memory() / MB:.0f} MB"])
    await asyncio.gather(sender.close(), reader.close())
    return count / (time.monotonic() - begun)


async def _read(layer: Layer, channel: str, count: int) -> None:
    for _ in range(count):
        await layer.receive(channel)


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
