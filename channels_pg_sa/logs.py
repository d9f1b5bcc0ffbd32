"""The package's loggers."""

from __future__ import annotations

import logging
import sys
import traceback


class Logger:
    """A logger whose handlers' errors end nothing of ours: printed, as logging prints those of its own handlers.

    A handler that sends through the layer, to show the log to browsers say, raises in the layer's own thread, which
    cannot wait for itself.

    https://docs.python.org/3/library/logging.html#logging.Handler.handleError

    Args:
        name: of the module that logs.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def log(self, level: int, message: str, *arguments: object, exc_info: BaseException | bool | None = None) -> None:
        """Log, in the name of the caller."""
        self._log(level, message, arguments, exc_info)

    def warning(self, message: str, *arguments: object, exc_info: BaseException | bool | None = None) -> None:
        """Log what ends by itself."""
        self._log(logging.WARNING, message, arguments, exc_info)

    def error(self, message: str, *arguments: object, exc_info: BaseException | bool | None = None) -> None:
        """Log what somebody must mend."""
        self._log(logging.ERROR, message, arguments, exc_info)

    def exception(self, message: str, *arguments: object) -> None:
        """Log the exception that is being handled."""
        self._log(logging.ERROR, message, arguments, exc_info=True)

    def _log(
        self, level: int, message: str, arguments: tuple[object, ...], exc_info: BaseException | bool | None
    ) -> None:
        try:
            self._logger.log(level, message, *arguments, exc_info=exc_info, stacklevel=3)
        except Exception:  # noqa: BLE001 - whatever a handler raises
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()
