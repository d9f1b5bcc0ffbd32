"""The check: runs the scenario over a running chat, step by step, and says what it saw."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from launcher.member import CheckFailed
from launcher.scenario import Scenario

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from launcher.fleet import Fleet


async def check(fleet: Fleet) -> int:
    """Run every step until one fails, print a line for each and a summary, and return 0 if all is well, else 1."""
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
    began, passed = time.monotonic(), 0
    try:
        for name, step in steps:
            if not await _passes(name, step):
                break
            passed += 1
    finally:
        await asyncio.gather(*(member.close() for member in scenario.everybody))
    failed = passed < len(steps)
    if failed:
        for program in fleet.programs:
            print(f"\n--- What {program} printed:\n{fleet.output(program)}")
    print(f"\n{passed} of {len(steps)} steps passed in {time.monotonic() - began:.1f} s.", flush=True)
    return int(failed)


async def _passes(name: str, step: Callable[[], Awaitable[str]]) -> bool:
    print(f"  {name:<38}  ", end="", flush=True)
    began = time.monotonic()
    try:
        word, seen = "ok  ", await step()
    except CheckFailed as failure:
        word, seen = "FAIL", str(failure)
    except Exception as error:  # whatever it is, the step did not go well
        word, seen = "FAIL", repr(error)
    print(f"{word}  {time.monotonic() - began:4.1f} s  {seen}", flush=True)
    return word != "FAIL"
