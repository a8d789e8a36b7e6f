"""Starts several ranks on this machine by torchrun's Python API, whose own error report is suppressed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from capo_fast.errors import CapoError, Interrupted, cause_of

SAVING_S = 600
"""Seconds that ranks have to save their work after a stop request."""


class LaunchError(CapoError):
    """The ranks could not be started."""


class RankKilled(CapoError):
    """A rank was killed by a signal and could not print an error."""


def launch(module: str, arguments: Sequence[str], count: int) -> int:
    """Run `python -m module` on `count` ranks and return the exit status of the first that failed, else 0.

    SIGTERM and Ctrl-C are passed to every rank. Raises LaunchError, RankKilled, and Interrupted once all have exited.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default for several ranks
    log = logging.getLogger("torch.distributed.elastic")
    log.addHandler(logging.NullHandler())
    log.propagate = False  # the ranks print their errors themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="capo",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=SAVING_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as failed:
        return _status({rank: failure.exitcode for rank, failure in failed.failures.items()})
    except SignalException as stopped:
        raise Interrupted(f"all ranks exited after {stopped.sigval.name}") from None
    except (RendezvousError, DistError, OSError) as error:
        raise LaunchError(f"can't start {count} ranks: {cause_of(error)}") from error
    return 0


def _status(exits: dict[int, int]) -> int:
    """The most informative exit status; `exits` is in the order of exit.

    Least informative are ranks that the launcher stopped (killed by SIGTERM, or 130 after saving), then status 1, which
    may be that of a rank that lost another.
    """
    stopped = (-signal.SIGTERM, Interrupted.exit_status)
    rank, status = min(exits.items(), key=lambda item: (item[1] in stopped, item[1] == 1))
    if status < 0:
        raise RankKilled(f"rank {rank} was killed by {signal.Signals(-status).name}{_hint(-status)}")
    return status


def _hint(number: int) -> str:
    """The usual cause of a signal: SIGBUS if shared memory can't grow, such as vLLM's between ranks."""
    if number != signal.SIGBUS or not (memory := Path("/dev/shm")).is_dir():
        return ""
    return f": /dev/shm has {shutil.disk_usage(memory).free / 2**20:.0f} MiB free, and ranks share memory there"
