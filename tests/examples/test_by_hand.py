"""What a person sees who runs an example."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from examples.common.run import CheckFailed, Example, Fleet, Stage, check
from tests.examples.programs import Running

EXAMPLES = ["celery", "feed", "orders"]


@pytest.mark.processes
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_says_what_to_open_and_ends_by_interrupt(layer_url: str, name: str) -> None:
    """An example tells the address of its page, and ends without a word of complaint."""
    running = Running(name, layer_url)
    status = running.interrupt()
    assert "Open  http://127.0.0.1:" in running.printed
    assert running.printed.endswith("^C stops everything.\n\nEverything is stopped.\n")
    assert status == 0


@pytest.mark.parametrize("failure", [CheckFailed("no order came"), ConnectionError("refused")])
def test_a_check_that_fails_ends_with_1(capsys: pytest.CaptureFixture[str], failure: Exception) -> None:
    """Whatever is raised is told, and is no success."""

    async def failing(stage: Stage) -> AsyncIterator[str]:
        yield "one thing went well"
        raise failure

    example = Example("", {}, lambda stage: "", failing)
    assert asyncio.run(check(example, Stage("", {}), Fleet({}))) == 1
    assert str(failure) in capsys.readouterr().out
