"""A rank with a given exit status: `python -m launched_rank RANK:STATUS`.

A negative STATUS is the signal that kills the rank; `wait:FOLDER` waits for SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def wait(folder: Path) -> None:
    """Wait for SIGTERM, then save, which takes a moment."""
    saved = folder / f"saved-{os.environ['RANK']}"

    def save(number: int, frame: object) -> None:
        time.sleep(0.5)
        saved.touch()
        sys.exit(130)

    signal.signal(signal.SIGTERM, save)
    (folder / f"ready-{os.environ['RANK']}").touch()
    time.sleep(60)


if __name__ == "__main__":
    rank, _, status = sys.argv[1].partition(":")
    if rank == "wait":
        wait(Path(status))
    if os.environ["RANK"] != rank:
        time.sleep(60 if int(status) else 0)  # until the launcher kills it
    elif int(status) < 0:
        os.kill(os.getpid(), -int(status))
    sys.exit(int(status))
