"""The consumer of the jobs' channel, for any number of `runworker` processes that share the work."""

from __future__ import annotations

import os
import random
import secrets
import time
from typing import Any

from channels.consumer import AsyncConsumer

from chatroom.jobs import Job, work


class JobWorker(AsyncConsumer):  # type: ignore[misc]  # channels ships no types
    """Do one job at a time and tell the room that asked."""

    done = 0

    async def job_asked(self, event: dict[str, Any]) -> None:
        """Do the job of an event that ChatConsumer sent, and say the result in its group."""
        started = time.time()
        text = work(Job(event["command"], event["argument"]), random.SystemRandom())
        self.done += 1
        asked = event["note"]
        note = {
            "id": secrets.token_hex(8),
            "key": asked["key"],
            "author": asked["author"],
            "answers": asked["id"],
            "text": text,
            "via": os.environ.get("CHAT_SERVER", "worker"),
            "worker": {"pid": os.getpid(), "done": self.done, "waited_ms": _since(asked["sent_at"], started)},
            "sent_at": asked["sent_at"],
        }
        await self.channel_layer.group_send(event["group"], {"type": "room.message", "note": note})


def _since(start: float, end: float) -> float:
    return round((end - start) * 1000, 2)
