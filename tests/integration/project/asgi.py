"""The application that `runworker` serves: jobs from a normal channel, answers to whoever asked."""

from __future__ import annotations

import os
from typing import Any

import django

django.setup()

from asgiref.sync import async_to_sync  # noqa: E402
from channels.consumer import AsyncConsumer, SyncConsumer  # noqa: E402
from channels.routing import ChannelNameRouter, ProtocolTypeRouter  # noqa: E402


class JobConsumer(AsyncConsumer):  # type: ignore[misc]
    """Answer each job with the number it has and the process that did it."""

    async def job_do(self, job: dict[str, Any]) -> None:
        """Send the answer."""
        answer = {"type": "job.done", "number": job["number"], "pid": os.getpid()}
        await self.channel_layer.send(job["answer_to"], answer)


class SyncJobConsumer(SyncConsumer):  # type: ignore[misc]
    """The same in synchronous code."""

    def job_do(self, job: dict[str, Any]) -> None:
        """Send the answer."""
        answer = {"type": "job.done", "number": job["number"], "pid": os.getpid()}
        async_to_sync(self.channel_layer.send)(job["answer_to"], answer)


application = ProtocolTypeRouter(
    {"channel": ChannelNameRouter({"jobs": JobConsumer.as_asgi(), "sync-jobs": SyncJobConsumer.as_asgi()})}
)
