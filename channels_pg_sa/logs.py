"""The package's loggers."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any


class Logger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose handlers' errors end nothing of ours: printed, as logging prints those of its own handlers.

    A handler that sends through the layer, to show the log to browsers say, raises in the layer's own thread, which
    cannot wait for itself.

    https://docs.python.org/3/library/logging.html#logging.Handler.handleError
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, in the name of the caller's caller."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever a handler raises
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()


def logger_of(module: str) -> Logger:
    """Return the logger of a module."""
    return Logger(logging.getLogger(module), {})
