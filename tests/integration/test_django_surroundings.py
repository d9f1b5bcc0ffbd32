"""What stands around a layer in a Django project: `manage.py test`, and a server that stops."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from channels_pg_sa.django import lifespan
from tests.support.databases import TestServer, database_name, query
from tests.support.layers import LayerFactory
from tests.support.processes import ROOT, environment
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.processes

SETTINGS = """
from tests.integration.project.settings import *

INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", *INSTALLED_APPS]
DATABASES = {"default": DATABASES["default"]}
CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND}}
TEST_RUNNER = "channels_pg_sa.testing.Runner"
"""

TESTS = """
import asyncio

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase

from channels_pg_sa.django import send


class Inside(TestCase):
    def test_a_group(self):
        self.assertIn("test_", connection.settings_dict["NAME"])

        async def talk():
            layer = get_channel_layer()
            channel = await layer.new_channel()
            await layer.group_add("news", channel)
            await layer.group_send("news", {"type": "news"})
            return await asyncio.wait_for(layer.receive(channel), 10)

        self.assertEqual(async_to_sync(talk)(), {"type": "news"})

    def test_nothing_of_it_is_sent(self):
        send("jobs", {"type": "never"})


class Committed(TransactionTestCase):
    def test_it_is_sent(self):
        with transaction.atomic():
            send("jobs", {"type": "job"})
        self.assertEqual(async_to_sync(get_channel_layer().receive)("jobs"), {"type": "job"})

    def test_another(self):
        self.test_it_is_sent()
"""


@pytest.mark.parametrize("arguments", [[], ["--parallel", "2"]], ids=["one process", "two processes"])
async def test_the_runner_of_the_package(
    tmp_path: Path, layer_url: str, server: TestServer, arguments: list[str]
) -> None:
    """Its tests pass, with the layer's own connections open, and nothing is left of the test databases."""
    (tmp_path / "trial_settings.py").write_text(SETTINGS)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "__init__.py").touch()
    (tmp_path / "trial" / "tests.py").write_text(TESTS)
    environ = environment(DJANGO_SETTINGS_MODULE="trial_settings", PROJECT_URL=layer_url)
    environ["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "django", "test", "trial", "--noinput", *arguments),
        cwd=tmp_path,
        env=environ,
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await asyncio.wait_for(process.communicate(), 6 * PATIENCE)
    assert process.returncode == 0, output.decode()
    assert b"Ran 4 tests" in output
    left = "SELECT datname FROM pg_database WHERE datname LIKE %s"
    assert query(layer_url, left, [f"test_{database_name(layer_url)}%"]) == []


async def test_a_server_that_stops_closes_the_layers(make_own_layer: LayerFactory) -> None:
    """The lifespan of Uvicorn, which by itself leaves the node behind until its lease is over."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    told: list[str] = []
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        return {"type": next(messages)}

    async def send(message: dict[str, str]) -> None:
        told.append(message["type"])

    await lifespan({"type": "lifespan"}, receive, send)
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "closed" in repr(layer)
