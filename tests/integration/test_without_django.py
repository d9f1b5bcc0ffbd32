"""A service in an environment where neither Django nor Channels is installed."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from channels_pg_sa.schema import REVISION
from tests.conformance.backends import Conversation
from tests.integration import service
from tests.support.engines import sqlalchemy_url
from tests.support.layers import LayerFactory
from tests.support.wheel import make_environment

TALK = Conversation(patience=10)

WAYS = ["url", "url, sync", "Engine", "Engine, sync", "AsyncEngine"]
WAYS += [f"{taker}, commit" for taker in ("Connection", "AsyncConnection", "Session", "AsyncSession")]
DIRECTORIES = ["Layer", "Layer, sync", "url", "url, sync", "Engine", "Engine, sync", "AsyncEngine"]
EXPECTED = [
    "not here: django channels asgiref",
    "in this environment: True",
    "hello",
    *(rf"{way} -> channel group group b'\x00\xff'" for way in WAYS),
    *(f"{way} -> 3 django jobs own orders here" for way in DIRECTORIES),
    "nothing was left",
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with what the package needs, but for Django and Channels."""
    return make_environment(tmp_path_factory.mktemp("service") / "venv", without={"django", "channels"})


def run(python: Path, *arguments: str) -> list[str]:
    """Run it, isolated from variables, the user's packages and this repository, and return the lines it printed."""
    command = [str(python), "-I", "-W", "error", *arguments]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.processes
async def test_without_django_and_channels(python: Path, database_url: str, make_own_layer: LayerFactory) -> None:
    """It migrates, sends in every way, receives and asks who is there; and what it sends is read on Django's side."""
    assert run(python, "-m", "channels_pg_sa", "upgrade", "--url", database_url) == [REVISION]
    django_side = make_own_layer(url=database_url, **service.CONFIG)
    await django_side.group_add("orders", "django")
    await django_side.send("from-django", {"type": "greeting", "text": "hello"})
    engine_url = sqlalchemy_url(database_url).render_as_string(hide_password=False)
    assert await asyncio.to_thread(run, python, service.__file__, database_url, engine_url) == EXPECTED
    assert await TALK.take(django_side, "django", len(WAYS)) == [service.order(way, "group") for way in WAYS]
