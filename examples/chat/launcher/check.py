"""The check: runs the scenario over a running chat, step by step, and says what it saw."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from launcher.member import CheckFailed
from launcher.scenario import Scenario
from launcher.summary import Row, print_summary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from launcher.fleet import Fleet


async def check(fleet: Fleet, kind: str, where: str) -> int:
    """Run every step, print the summary, and return 0 if all is well, else 1."""
    scenario = Scenario(fleet)
    steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("Pages and their policy", scenario.pages),
        ("Who is in the room, on which server", scenario.presence),
        ("One word at a time, both ways", scenario.quiet),
        ("Talk: each once, in order", scenario.talk),
        ("Jobs done by a worker", scenario.jobs),
        ("Bad input is refused, the socket lives", scenario.bad_input),
        ("Leaving is seen", scenario.leaving),
        ("Server B killed (SIGKILL)", scenario.server_killed),
        ("Server B started again", scenario.server_back),
        ("Worker killed: its jobs wait", scenario.worker_killed),
        ("Nothing came twice or astray", scenario.nothing_astray),
    ]
    rows: list[Row] = []
    for name, step in steps:
        started = time.monotonic()
        try:
            rows.append(Row(name, True, await step(), time.monotonic() - started))
        except (CheckFailed, OSError) as failure:
            rows.append(Row(name, False, str(failure), time.monotonic() - started))
            break
    failed = print_summary(rows, len(steps), f"two {kind} servers and a worker on {where}")
    if failed:
        for program in fleet.programs:
            print(f"--- {program}\n{fleet.output(program)}")
    await asyncio.gather(*(member.close() for member in scenario.everybody))
    return int(failed)
