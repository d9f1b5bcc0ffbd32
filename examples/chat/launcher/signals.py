"""Ends a program in the same way, whoever asks for it."""

from __future__ import annotations

import signal
from typing import NoReturn


def interrupt_on_signals() -> None:
    """Make ^C, SIGTERM and the end of the terminal raise KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # A shell that starts this in the background leaves SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
