"""A Django project on the layer: workers started by `runworker`, and databases named in each way there is."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.databases import TestServer
from tests.support.layers import LISTENER, LayerFactory, Message, PostgresLayer
from tests.support.processes import ROOT, TURNOVER, environment
from tests.support.waiting import PATIENCE, eventually_async

pytestmark = pytest.mark.processes

SETTINGS = "tests.integration.project.settings"


class Workers:
    """Start `manage.py runworker` processes and wait until they listen."""

    def __init__(self, server: TestServer, url: str) -> None:
        self._server = server
        self._url = url
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self, count: int, *channels: str) -> None:
        """Start so many workers on these channels."""
        environ = environment(DJANGO_SETTINGS_MODULE=SETTINGS, PROJECT_URL=self._url)
        before = len(self._server.connections(self._url, LISTENER))
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "django", "runworker", *channels), cwd=ROOT, env=environ
            )
            self.running.append(process)

        async def listening() -> bool:
            return len(self._server.connections(self._url, LISTENER)) >= before + count

        await eventually_async(listening, within=TURNOVER)

    async def kill(self) -> int:
        """End one worker by SIGKILL; return its process id."""
        process = self.running.pop()
        process.kill()
        await process.wait()
        return process.pid

    async def stop(self) -> None:
        """End all workers by SIGTERM, as a service manager does."""
        for process in self.running:
            process.terminate()
        await asyncio.wait_for(asyncio.gather(*(process.wait() for process in self.running)), TURNOVER)


@pytest_asyncio.fixture
async def workers(server: TestServer, layer_url: str, make_own_layer: LayerFactory) -> AsyncIterator[Workers]:
    """Start workers that end with the test, and before the layers, which then must have left no connection."""
    started = Workers(server, layer_url)
    yield started
    await started.stop()


async def answers(layer: PostgresLayer, channel: str, count: int) -> list[Message]:
    """Receive so many answers."""
    return [await asyncio.wait_for(layer.receive(channel), 2 * PATIENCE) for _ in range(count)]


@pytest.mark.parametrize("jobs", ["jobs", "sync-jobs"])
async def test_workers_share_the_jobs(workers: Workers, make_own_layer: LayerFactory, jobs: str) -> None:
    """Peer defect 22: three runworker processes on one channel do each job once, and each has its part."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await workers.start(3, jobs)
    sends = [layer.send(jobs, {"type": "job.do", "number": n, "answer_to": channel}) for n in range(300)]
    await asyncio.gather(*sends)
    seen = await answers(layer, channel, 300)
    assert sorted(answer["number"] for answer in seen) == list(range(300))
    assert len({answer["pid"] for answer in seen}) == 3


async def test_the_other_workers_go_on_when_one_is_killed(workers: Workers, make_own_layer: LayerFactory) -> None:
    """Peer defect 8: jobs sent after a worker was killed are all done by the others."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await workers.start(3, "jobs")
    gone = await workers.kill()
    sends = [layer.send("jobs", {"type": "job.do", "number": n, "answer_to": channel}) for n in range(100)]
    await asyncio.gather(*sends)
    seen = await answers(layer, channel, 100)
    assert sorted(answer["number"] for answer in seen) == list(range(100))
    assert gone not in {answer["pid"] for answer in seen}


async def test_jobs_wait_for_a_worker(workers: Workers, make_own_layer: LayerFactory) -> None:
    """Peer defect 2: jobs sent while no worker runs are done when one starts."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    for number in range(20):
        await layer.send("jobs", {"type": "job.do", "number": number, "answer_to": channel})
    await workers.start(1, "jobs")
    assert [answer["number"] for answer in await answers(layer, channel, 20)] == list(range(20))


SCRIPT = """
import asyncio, json, django
django.setup()
from channels.layers import get_channel_layer

async def main():
    layers = [get_channel_layer(alias) for alias in ("default", "by-url", "by-alias", "django-keys")]
    for number, layer in enumerate(layers):
        await layer.send("jobs", {"number": number})
    seen = []
    for layer in (layers[1], layers[0], layers[3], layers[2]):
        seen.append((await layer.receive("jobs"))["number"])
    for layer in layers:
        await layer.close()
    print(json.dumps(seen))

asyncio.run(main())
"""


async def run(script: str, **environ: str) -> Any:
    """Run Python code in a project's process and return the JSON it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", script),
        cwd=ROOT,
        env=environment(DJANGO_SETTINGS_MODULE=SETTINGS, **environ),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), TURNOVER)
    assert process.returncode == 0
    return json.loads(output)


async def test_each_way_to_name_the_database(layer_url: str, server: TestServer, template: str) -> None:
    """Peer defects 1 and 12: Django's keys with USE_TZ work, and each alias writes to the database it names."""
    other = server.create(template)
    # Two aliases name each database, so the first in is the first out there.
    assert await run(SCRIPT, PROJECT_URL=layer_url, PROJECT_OTHER_URL=other) == [0, 1, 2, 3]
    server.drop(other)


LEAK = """
import asyncio, json, django
django.setup()
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

layer = get_channel_layer()
for number in range(20):
    async_to_sync(layer.send)("jobs", {"number": number})
layer.group_send_sync("group", {"number": 1})
print(json.dumps(number))
"""


async def test_a_script_that_never_closes_ends_cleanly(layer_url: str, server: TestServer) -> None:
    """A management command that sends and returns ends at once, without a warning or a connection left."""
    assert await run(LEAK, PROJECT_URL=layer_url) == 19

    async def gone() -> bool:
        return not server.connections(layer_url)

    await eventually_async(gone)
