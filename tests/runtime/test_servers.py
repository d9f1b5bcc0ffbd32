"""Servers that fork after the layer was used, or that end in a way of their own: Celery, gunicorn, Uvicorn."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.databases import TestServer, query
from tests.support.layers import LayerFactory
from tests.support.processes import ROOT, TURNOVER, environment
from tests.support.waiting import PATIENCE, eventually

from .programs import PER_PROCESS, STRICT, Watch, at_most, run

pytestmark = [pytest.mark.processes, pytest.mark.any_server]


SEND = "from tests.runtime.celery_app import tell\nfor number in range(60): tell.delay(number)"
GOODBYE = "worker: Warm shutdown (MainProcess)"
"""What Celery says at its end, however quiet it shall be."""


NODES = "SELECT count(*) FROM channels_pg_sa_node"


def get(address: str, number: int) -> int:
    """Ask the application for the number; return the id of the process that answers."""
    with urllib.request.urlopen(f"http://{address}/{number}", timeout=PATIENCE) as answer:
        echo, pid = answer.read().split()
    assert int(echo) == number
    return int(pid)


def serves(address: str) -> bool:
    """Tell whether the application answers."""
    try:
        return get(address, 0) > 0
    except OSError:
        return False


@contextmanager
def serving(command: str, **environ: str) -> Iterator[None]:
    """Run a server in the block, then end it by SIGTERM; it must end well and have said nothing."""
    process = subprocess.Popen(
        [sys.executable, *STRICT, *command.split()],
        cwd=ROOT,
        env=environment(**environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            output, _ = process.communicate(timeout=TURNOVER)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        print(output)
    assert process.returncode == 0
    assert output.strip() in ("", GOODBYE)


async def test_celery(make_own_layer: LayerFactory, server: TestServer, layer_url: str, tmp_path: Path) -> None:
    """Peer defect 24: tasks in forked workers of Celery leaked connections, and met closed loops."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    environ = {"CELERY_FOLDER": str(tmp_path), "LAYER_URL": layer_url}
    worker = (
        "-m celery -q -A tests.runtime.celery_app worker -P prefork -c 2 -l ERROR --without-gossip --without-mingle"
    )
    await asyncio.to_thread(run, "-c", SEND, **environ)
    with Watch(server, layer_url) as watch:
        with serving(worker, **environ):
            seen = [await asyncio.wait_for(layer.receive(channel), TURNOVER) for _ in range(60)]
        # Its three processes are gone; this one is here.
        eventually(lambda: len(server.connections(layer_url)) <= PER_PROCESS)
    assert watch.most <= PER_PROCESS * 4
    assert sorted(message["number"] for message in seen) == list(range(60))
    assert len({message["pid"] for message in seen}) == 2


def test_gunicorn(server: TestServer, layer_url: str) -> None:
    """Peer defect 24: workers of gunicorn --preload shared the connections of the process they were forked from."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = (
        f"-m gunicorn --preload -w 2 -k uvicorn_worker.UvicornWorker -b {address} --log-level error"
        " tests.runtime.asgi_app:app"
    )

    answered = set[int]()

    def have_both_answered() -> bool:  # the second may be up long after the first
        answered.update(get(address, number) for number in range(20))
        return len(answered) == 2

    with at_most(server, layer_url, 3), serving(command, LAYER_URL=layer_url):
        eventually(lambda: serves(address), within=TURNOVER)
        eventually(have_both_answered, within=TURNOVER)


def test_uvicorn(layer_url: str) -> None:
    """It ends itself by the signal that stops it: the lifespan closes the layer before."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    command = f"-m uvicorn --port {port} --log-level error tests.runtime.asgi_app:app"
    environ = environment(LAYER_URL=layer_url)
    process = subprocess.Popen([sys.executable, *STRICT, *command.split()], cwd=ROOT, env=environ)
    try:
        eventually(lambda: serves(address), within=TURNOVER)
        assert query(layer_url, NODES) == [(1,)]
        process.terminate()
        process.wait(TURNOVER)
    finally:
        process.kill()  # which says nothing to one that has ended
        process.wait()
    assert query(layer_url, NODES) == [(0,)]
