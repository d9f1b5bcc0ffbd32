"""Run a module as a program that ends with its launcher, however the launcher ends: `-m launcher.tether MODULE ...`."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

PATIENCE = 5.0


def _follow_launcher() -> None:
    # The launcher holds the other end of this pipe and never writes: the read returns when the launcher is gone.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(PATIENCE)
    os._exit(1)


def main() -> None:
    """Run the module named by the first argument with the others."""
    # Servers put handlers of their own in place of this one; a worker has none, and so ends tidily too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_follow_launcher, name="follow-launcher", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
