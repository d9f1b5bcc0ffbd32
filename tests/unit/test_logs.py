"""Handlers of the log that raise: what they do is theirs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from channels_pg_sa.logs import Logger


class Failing(logging.Handler):
    """A handler that raises, and does not call handleError()."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(f"in {record.funcName}")


@pytest.fixture
def failing() -> Iterator[str]:
    """The name of a logger with such a handler."""
    name, handler = "channels_pg_sa.tests", Failing()
    logging.getLogger(name).addHandler(handler)
    yield name
    logging.getLogger(name).removeHandler(handler)


def test_an_error_of_a_handler_is_printed(failing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As logging prints those of its own; the record is of the function that logs."""
    Logger(failing).warning("anything")
    assert "RuntimeError: in test_an_error_of_a_handler_is_printed" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["raiseExceptions", "stderr"])
def test_where_logging_would_not_print_it_nothing_does(
    failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """In production, and in a process without a terminal."""
    if what == "stderr":
        monkeypatch.setattr(sys, "stderr", None)
    else:
        monkeypatch.setattr(logging, "raiseExceptions", False)
    Logger(failing).warning("anything")
    monkeypatch.undo()
    assert capsys.readouterr().err == ""
