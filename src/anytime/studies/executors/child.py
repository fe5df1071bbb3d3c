"""`python child.py PARENT COMMAND ...` runs `anytime COMMAND ...` and ends it when the process that started it has ended.

It is run by its path, so that it watches from the beginning and nothing else of the library is imported before.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

LOOK = 0.5  # seconds between looks at the parent


def follow(parent: int) -> None:
    """Sends this process SIGTERM when its parent has ended, however it ended; a training then writes a checkpoint and ends.

    Args:
        parent: The number of the process that started this one. On Windows, which keeps the number, nothing is done.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    if sys.platform != "win32":
        threading.Thread(target=watch, name="anytime-parent", daemon=True).start()


if __name__ == "__main__":
    follow(int(sys.argv.pop(1)))
    runpy.run_module("anytime", run_name="__main__", alter_sys=True)
