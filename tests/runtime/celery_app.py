"""A Celery application whose tasks send to a group; the layer is used before the worker forks."""

from __future__ import annotations

import os
import warnings

from asgiref.sync import async_to_sync
from celery import Celery
from celery.exceptions import SecurityWarning

from channels_pg_sa import Layer

from .scenarios import use

warnings.filterwarnings("ignore", category=SecurityWarning)  # The tests may run as root.

FOLDER = os.environ["CELERY_FOLDER"]

app = Celery("jobs", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": FOLDER,
        "data_folder_out": FOLDER,
        "control_folder": FOLDER + "/control",
        "polling_interval": 0.02,
    },
    worker_prefetch_multiplier=1,
)

layer = Layer(url=os.environ["LAYER_URL"])
use(layer)


@app.task
def tell(number: int) -> None:
    """Tell the group, each other time through an event loop."""
    message = {"number": number, "pid": os.getpid()}
    if number % 2:
        async_to_sync(layer.group_send)("group", message)
    else:
        layer.group_send_sync("group", message)
