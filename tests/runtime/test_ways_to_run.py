"""Every way Python is run: sync code, threads, loops, forks, servers, and the end of the interpreter."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.databases import TestServer
from tests.support.layers import LayerFactory

from .programs import at_most, run
from .test_bounds import take

pytestmark = [pytest.mark.processes, pytest.mark.any_server]


# The name of each scenario, and how many processes it has at once.
SCENARIOS = {
    "calls_from_sync_code": 1,
    "sixteen_threads": 1,
    "many_loops": 1,
    "closed_loop": 1,
    "stopped_loop": 1,
    "blocked_loop": 1,
    "loop_that_goes_on": 1,
    "uvloop": 1,
    "forks_in_traffic": 2,
    "children_that_use_nothing": 1,
    "forks_with_locks_held": 2,
    "killed_with_a_child": 2,
    "grandchildren": 3,
    "fork_in_a_coroutine": 2,
    "forks_that_python_is_not_told_of": 3,
    "worker_processes": 3,
    "script_ends": 1,
    "exit_in_a_coroutine": 1,
    "exit_in_a_thread": 1,
    "exit_at_once": 1,
    "interrupted": 1,
    "many_layers": 1,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(server: TestServer, layer_url: str, name: str) -> None:
    """Peer defect 24: "Event loop is closed", and connections leaked by the thousand; here none stays."""
    with at_most(server, layer_url, SCENARIOS[name], least=0 if name == "exit_at_once" else 1):
        assert run("-m", "tests.runtime.scenarios", name, layer_url) == ""


def test_a_script_that_fails_says_only_why(server: TestServer, layer_url: str) -> None:
    """A script that ends by an exception, and does not close its layer, prints that exception's traceback alone."""
    with at_most(server, layer_url, 1):
        lines = run("-m", "tests.runtime.scenarios", "exception", layer_url, status=1).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "RuntimeError: on purpose"
    assert all(line.startswith(" ") for line in lines[1:-1])


@pytest.mark.parametrize("more", [(), ("--threads",)], ids=["threads", "their loops"])
async def test_threads_that_are_green_are_refused(
    layer_url: str, make_own_layer: LayerFactory, more: tuple[str, ...]
) -> None:
    """Peer defect 24: one send by gunicorn's or Celery's gevent workers, and Django's ORM refused to work there."""
    await asyncio.to_thread(run, "-W", "ignore", "-m", "tests.runtime.green", layer_url, *more, strict=False)
    assert await take(make_own_layer(), "jobs", 2) == [1, 2]


def test_it_can_be_imported_where_poll_is_missing() -> None:
    """As eventlet leaves the module select; a name in INSTALLED_APPS must not stop the project."""
    assert run("-c", "import select; del select.poll; import channels_pg_sa") == ""
