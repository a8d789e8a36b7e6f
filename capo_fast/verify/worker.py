"""A worker process of `pool.WorkerPool`: it loads one function and serves it until its parent exits.

    parent -> worker   (name, settings, most, verdicts), once: the function, the bytes that the worker may map, and
                       whether the function must return a verdict
    worker -> parent   ("ready", whether it takes lists) or ("unloadable", reason), once
    parent -> worker   [(response, reference, columns), ...]
    worker -> parent   ("verdicts", [...]), ("memory", None) or ("error", traceback)

It imports neither torch nor an engine.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from capo_fast.verify.functions import Item, RewardFunction, Verdict, VerifyTimeout, load_function

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arguments: the file descriptor of its end of the pipe, and its parent's process id."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _exit_with(parent)
    # The parent handles a signal to the whole process group: it saves its step first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Connection(descriptor))


def serve(connection: Connection[Any, Any]) -> None:
    name, settings, limit, verdicts = connection.recv()
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        function = load_function(name, settings)
    except Exception as error:
        connection.send(("unloadable", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", function.batch))
    try:
        while True:
            connection.send(answer(function, connection.recv(), verdicts))
    except (EOFError, OSError):
        return


def answer(function: RewardFunction, items: list[Item], verdicts: bool) -> tuple[str, Any]:
    """The message with the result of one call of the function."""
    try:
        values = function(items)
        return "verdicts", [verdict(value) for value in values] if verdicts else values
    except VerifyTimeout:
        return "verdicts", [None] * len(items)
    except MemoryError:
        return "memory", None
    except BaseException:  # even a SystemExit is an error of the function, which the parent reports
        return "error", traceback.format_exc()


def verdict(value: Any) -> Verdict:
    """The function's value, if it is a verdict. Raises ValueError or TypeError."""
    if not isinstance(value, bool) and not 0.0 <= (value := float(value)) <= 1.0:
        raise ValueError(f"it returned {value}, which is neither a bool nor a float in [0, 1]")
    return value


def _exit_with(parent: int) -> None:
    """Makes the kernel kill even a worker that hangs in C with its parent; an idle one exits when its pipe closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
