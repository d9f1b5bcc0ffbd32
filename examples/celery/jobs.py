"""The Celery application: a task that tells how far it is. Its worker knows no event loop and no WebSocket."""

from __future__ import annotations

import os

import django

django.setup()

from celery import Celery  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from django.db import transaction  # noqa: E402

from channels_pg_sa.django import group_send  # noqa: E402
from examples.celery.models import Report  # noqa: E402

FOLDER = os.environ["CELERY_FOLDER"]
STEPS = 5

# Files, so that the example needs no other server; your own broker does as well.
app = Celery("jobs", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": FOLDER,
        "data_folder_out": FOLDER,
        "control_folder": FOLDER,
        "polling_interval": 0.1,
    },
    broker_connection_retry_on_startup=True,
)


@app.task
def count_primes(limit: int, group: str) -> None:
    """Count the primes below a limit, and tell a group of it."""
    layer = get_channel_layer()
    layer.group_send_sync(group, {"type": "report.started", "limit": limit})
    found = 0
    for step in range(STEPS):
        found += sum(map(_is_prime, range(limit * step // STEPS, limit * (step + 1) // STEPS)))
        # Sent at once, whatever becomes of the task: it says nothing that is in the database.
        layer.group_send_sync(group, {"type": "report.progress", "percent": 100 * (step + 1) // STEPS})
    with transaction.atomic():
        report = Report.objects.create(limit=limit, primes=found)
        # Sent with the commit: whoever hears of the report can read it.
        group_send(group, {"type": "report.finished", "id": report.id})


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
