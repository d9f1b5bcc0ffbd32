"""What stands around a layer in a Django project: `manage.py test`, and a server that stops."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from channels_pg_sa import django as django_module
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

THIRD = '"third": {**ours, "TEST": {"NAME": ours["NAME"] + "_third"}}'
LEAVES = """
from channels.layers import get_channel_layer
from django.test import TransactionTestCase


class Leaves(TransactionTestCase):
    def test_a_message(self):
        get_channel_layer().send_sync("jobs", {"type": "job"})
"""

LIVE_SETTINGS = (
    SETTINGS
    + """
ASGI_APPLICATION = "trial.asgi.application"
"""
)

LIVE_APPLICATION = """
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

http = get_asgi_application()  # loads the apps, as models want it, where the process is not a fork

from django.contrib.contenttypes.models import ContentType


class Chat(AsyncWebsocketConsumer):
    groups = ["room"]

    async def receive(self, text_data):
        count = await ContentType.objects.acount()  # in the same database
        await self.channel_layer.group_send("room", {"type": "tell", "text": f"{text_data} {count > 0}"})

    async def tell(self, event):
        await self.send(event["text"])


application = ProtocolTypeRouter({"http": http, "websocket": Chat.as_asgi()})
"""

LIVE_TESTS = """
from channels.testing import ChannelsLiveServerTestCase
from websockets.sync.client import connect


class Live(ChannelsLiveServerTestCase):
    serve_static = False

    def test_a_chat(self):
        with connect(self.live_server_ws_url) as one, connect(self.live_server_ws_url) as other:
            one.send("hello")
            for page in (one, other):
                self.assertEqual(page.recv(timeout=10), "hello True")

    def test_another(self):
        self.test_a_chat()
"""


@pytest.mark.parametrize("arguments", [[], ["--parallel", "2"]], ids=["one process", "two processes"])
async def test_the_runner_of_the_package(
    tmp_path: Path, layer_url: str, server: TestServer, arguments: list[str]
) -> None:
    """Its tests pass, with the layer's own connections open, and nothing is left of the test databases."""
    (tmp_path / "trial_settings.py").write_text(SETTINGS)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "tests.py").write_text(TESTS)
    output = await run_tests(tmp_path, layer_url, *arguments)
    assert b"Ran 4 tests" in output
    left = "SELECT datname FROM pg_database WHERE datname LIKE %s"
    assert query(layer_url, left, [f"test_{database_name(layer_url)}%"]) == []


async def test_the_runner_makes_the_tables_in_the_schema_of_the_layer(tmp_path: Path, layer_url: str) -> None:
    """Which finds them nowhere else."""
    layers = 'CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": {"schema": "of_the_layer"}}}\n'
    (tmp_path / "trial_settings.py").write_text(SETTINGS + layers)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "tests.py").write_text(TESTS)
    assert b"Ran 4 tests" in await run_tests(tmp_path, layer_url)


SERIALIZED = """
from django.db import connection
from django.test import TransactionTestCase


class Serialized(TransactionTestCase):
    serialized_rollback = True

    def test_there_is_something_to_roll_back_to(self):
        self.assertTrue(hasattr(connection, "_test_serialized_contents"))
"""


async def test_a_layer_takes_no_serialized_rollback_from_its_database(tmp_path: Path, layer_url: str) -> None:
    """What the tests want of it counts for more than that a layer uses it."""
    (tmp_path / "trial_settings.py").write_text(SETTINGS)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "tests.py").write_text(SERIALIZED)
    assert b"Ran 1 test" in await run_tests(tmp_path, layer_url)


@pytest.mark.parametrize(
    "alias",
    [
        pytest.param('"channels_pg_sa": dict(ours)', id="of its own"),
        pytest.param('"channels_pg_sa": {**ours, "TEST": {"MIRROR": "default"}}', id="a mirror"),
        pytest.param('"channels_pg_sa": {**ours, "TEST": {"NAME": ours["NAME"] + "_other"}}', id="apart"),
        pytest.param('"channels_pg_sa": {**ours, "TEST": {"MIRROR": "third"}}, ' + THIRD, id="a mirror of a third"),
        pytest.param(
            '"channels_pg_sa": {**ours, "TEST": {"NAME": ours["NAME"] + "_2", "DEPENDENCIES": ["third"]}}, ' + THIRD,
            id="after a third",
        ),
    ],
)
async def test_a_layer_whose_alias_no_test_names(tmp_path: Path, layer_url: str, alias: str) -> None:
    """It is in the test database all the same, with our tables, and in that of the project nothing is sent."""
    aliases = f'ours = DATABASES["default"]\nDATABASES = {{"default": ours, {alias}}}\n'
    (tmp_path / "trial_settings.py").write_text(SETTINGS + aliases)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "tests.py").write_text(LEAVES)
    assert b"Ran 1 test" in await run_tests(tmp_path, layer_url)
    assert query(layer_url, "SELECT channel FROM channels_pg_sa_message") == []


@pytest.mark.parametrize(
    ("alias", "named"),
    [
        pytest.param('"channels_pg_sa": dict(ours)', "channels_pg_sa", id="only that of the layer"),
        pytest.param(
            '"channels_pg_sa": {**ours, "TEST": {"MIRROR": "default"}},'
            '"apart": {**ours, "TEST": {"NAME": ours["NAME"] + "_apart", "DEPENDENCIES": []}}',
            "apart",
            id="neither a mirror nor its original",
        ),
    ],
)
async def test_a_layer_of_which_a_test_names_little(tmp_path: Path, layer_url: str, alias: str, named: str) -> None:
    """It is in a test database with our tables, and in that of the project nothing is sent."""
    aliases = f'ours = DATABASES["default"]\nDATABASES = {{"default": ours, {alias}}}\n'
    (tmp_path / "trial_settings.py").write_text(SETTINGS + aliases)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "tests.py").write_text(f'{LEAVES}\n    databases = {{"{named}"}}\n')
    assert b"Ran 1 test" in await run_tests(tmp_path, layer_url)
    assert query(layer_url, "SELECT channel FROM channels_pg_sa_message") == []


@pytest.mark.parametrize("config", ['"postgresql://h/d"', "None", '{"database": ["default"]}'])
async def test_a_config_that_is_none_is_told_by_the_checks(tmp_path: Path, layer_url: str, config: str) -> None:
    """And not by a traceback of the runner's."""
    layer = f'CHANNEL_LAYERS = {{"default": {{"BACKEND": BACKEND, "CONFIG": {config}}}}}\n'
    (tmp_path / "trial_settings.py").write_text(SETTINGS + layer)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "tests.py").write_text(LEAVES)
    with pytest.raises(AssertionError, match=r"channels_pg_sa\.E001.* must be"):
        await run_tests(tmp_path, layer_url)


async def test_a_live_server_of_channels_is_in_the_test_database(tmp_path: Path, layer_url: str) -> None:
    """With its consumers, their layer and their models: Channels would look for another, of which nobody knows."""
    (tmp_path / "trial_settings.py").write_text(LIVE_SETTINGS)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "asgi.py").write_text(LIVE_APPLICATION)
    (tmp_path / "trial" / "tests.py").write_text(LIVE_TESTS)
    assert b"Ran 2 tests" in await run_tests(tmp_path, layer_url)


TWICE = """
import django

django.setup()

from django.db import connection

from channels_pg_sa.testing import Runner

for tests in ("trial.simple", "trial.tests", "trial.tests"):
    assert Runner(interactive=False, verbosity=0).run_tests([tests]) == 0
    assert connection.settings_dict["TEST"]["NAME"] is None
"""


async def test_runs_in_one_process_leave_the_project_s_database_alone(tmp_path: Path, layer_url: str) -> None:
    """The first needs no test database, so that the names are still those of the project."""
    (tmp_path / "trial_settings.py").write_text(SETTINGS)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "tests.py").write_text(TESTS)
    (tmp_path / "trial" / "simple.py").write_text(
        "from django.test import SimpleTestCase\n\nclass Simple(SimpleTestCase):\n    def test(self):\n        pass\n"
    )
    await run_python(tmp_path, layer_url, "-c", TWICE)
    assert query(layer_url, "SELECT current_database()") == [(database_name(layer_url),)]


async def run_tests(tmp_path: Path, layer_url: str, *arguments: str) -> bytes:
    """Run `manage.py test`, which must pass; return what it says."""
    return await run_python(tmp_path, layer_url, *("-m", "django", "test", "trial", "--noinput", *arguments))


async def run_python(tmp_path: Path, layer_url: str, *arguments: str) -> bytes:
    """Run a program in the project, which must end well; return what it says."""
    (tmp_path / "trial" / "__init__.py").touch()
    environ = environment(DJANGO_SETTINGS_MODULE="trial_settings", PROJECT_URL=layer_url)
    environ["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=tmp_path,
        env=environ,
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await asyncio.wait_for(process.communicate(), 6 * PATIENCE)
    assert process.returncode == 0, output.decode()
    return output


async def test_a_server_that_stops_closes_the_layers(make_own_layer: LayerFactory) -> None:
    """The lifespan of Uvicorn, which by itself leaves the node behind until its lease is over."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    told: list[str] = []
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        assert "closed" not in repr(layer), "it serves until the server stops"
        return {"type": next(messages)}

    async def send(message: dict[str, str]) -> None:
        told.append(message["type"])

    await lifespan({"type": "lifespan"}, receive, send)
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "closed" in repr(layer)
    assert list(messages) == []


async def test_layers_that_close_hold_up_no_loop_of_the_server_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has other applications to tell, and connections to end."""
    closing: list[threading.Thread] = []
    monkeypatch.setattr(django_module, "close_layers", lambda: closing.append(threading.current_thread()))

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.shutdown"}

    async def send(_: dict[str, str]) -> None: ...

    await lifespan({"type": "lifespan"}, receive, send)
    assert len(closing) == 1
    assert closing[0] is not threading.current_thread()
