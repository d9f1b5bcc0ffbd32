"""The Django server: whoever opens the page orders a report, and sees how it gets on."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from examples.celery.jobs import count_primes
from examples.celery.models import Report
from examples.common.site import site

LIMIT = 300_000


class Reports(AsyncJsonWebsocketConsumer):
    """A page that is open, and the report that it has ordered."""

    async def connect(self) -> None:
        """Join a group of its own, and only then order the report."""
        await self.accept()
        group = f"report.{uuid4().hex}"
        await self.channel_layer.group_add(group, self.channel_name)
        self.groups.append(group)  # left when the page is closed
        await sync_to_async(count_primes.delay)(LIMIT, group)

    async def report_started(self, message: dict[str, Any]) -> None:
        """Say that a worker has taken it."""
        await self.send_json({"what": "started", "text": f"A worker counts the primes below {message['limit']:,}."})

    async def report_progress(self, message: dict[str, Any]) -> None:
        """Say how far it is."""
        await self.send_json({"what": "progress", "percent": message["percent"], "text": f"{message['percent']} %"})

    async def report_finished(self, message: dict[str, Any]) -> None:
        """Show the result; it can be read, because it was committed before the message came."""
        report = await Report.objects.aget(id=message["id"])
        await self.send_json({"what": "finished", "primes": report.primes, "text": f"There are {report.primes:,}."})


application = site(Reports)
