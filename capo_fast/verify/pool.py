"""Killable worker processes that check answers, one deadline for each item.

A comparison may hang for ever (a policy wrote one side of it), so every item runs in a worker that its parent can kill.
Workers are fresh interpreters, not forks and not `multiprocessing`'s spawn: that would run the main script again, with
torch and the engine, in each of them.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from typing import Any

from capo_fast.errors import CapoError

START_LIMIT_S = 120.0
"""What a worker may take to import its function."""
# Deaf to Ctrl-C from the first moment: it reaches the whole process group, and the parent decides.
_BOOT = """\
import signal
signal.signal(2, signal.SIG_IGN)
from capo_fast.terminal import standard_streams
from capo_fast.verify.pool import serve
with standard_streams(goes_on=True):  # a function that prints is not wrong because the output is full
    serve()
"""
_PR_SET_PDEATHSIG = 1


Verdict = bool | float | None
"""Of one answer: right or wrong, a share, or None where the check timed out."""


class VerifierError(CapoError):
    """The reward function failed, could not be loaded, or gave no verdict: a bug in it, not a wrong answer."""


class VerifyTimeout(Exception):
    """A check took too long and ended itself; the pool counts it like an item whose worker it had to kill."""


class VerifierPool:
    """Checks (prediction, reference) pairs in `workers` processes, at most `timeout_s` seconds each.

    `fn` names any `package.module:function` from (prediction, reference) to a bool or a float in [0, 1], so that a
    user's reward can stand in for the verifier. Workers start at the first `check` and stay; a pool may be used from
    several threads, which take turns.

    >>> with VerifierPool(workers=1) as pool:
    ...     pool.check([("\\\\boxed{1/2}", "0.5"), ("the answer is 3", "4")])
    [True, False]
    """

    def __init__(self, workers: int = 2, timeout_s: float = 10.0, fn: str = "capo_fast.verify:answers_equal") -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(f"workers and timeout_s must be positive, not {workers} and {timeout_s}")
        _split_name(fn)
        self.workers, self.timeout_s, self.fn = workers, timeout_s, fn
        self._team: list[_Worker] = []
        self._lock = threading.Lock()
        self._starter: ThreadPoolExecutor | None = None
        self._queue: ThreadPoolExecutor | None = None
        self._submitted: SimpleQueue[tuple[list[tuple[str, str]], Future[list[bool | float | None]]]] = SimpleQueue()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a check under way and kills the workers; a later `check` starts new ones."""
        if self._queue is not None:
            self._queue.shutdown(cancel_futures=True)
            self._queue = None
        self._dismiss()

    def _dismiss(self) -> None:
        for worker in self._team:
            worker.kill()
        self._team.clear()
        if self._starter is not None:
            self._starter.shutdown()
            self._starter = None

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[bool | float | None]:
        """What `fn` says of each pair, in order; None where it timed out, or killed its worker twice over.

        An exception of `fn`, or a value that is no bool and no float in [0, 1], raises `VerifierError` with the item
        and the worker's traceback; so does a function that can't be loaded.
        """
        with self._lock:
            try:
                return _Round(self, list(pairs)).run()
            except BaseException:
                self._dismiss()  # an item still at work would answer into the next round
                raise

    def submit(self, pairs: Sequence[tuple[str, str]]) -> Future[list[bool | float | None]]:
        """`check` in the background, in one round with all that is submitted while the round before runs."""
        future: Future[list[bool | float | None]] = Future()
        self._submitted.put((list(pairs), future))
        self._queue = self._queue or ThreadPoolExecutor(1, thread_name_prefix="verifier-queue")
        self._queue.submit(self._check_submitted)
        return future

    def _check_submitted(self) -> None:
        waiting = [self._submitted.get_nowait() for _ in range(self._submitted.qsize())]
        try:
            verdicts = iter(self.check([pair for pairs, _ in waiting for pair in pairs]))
            for pairs, future in waiting:
                future.set_result([next(verdicts) for _ in pairs])
        except Exception as error:
            for _, future in waiting:
                future.set_exception(error)

    def _staff(self, wanted: int) -> list[_Worker]:
        """The living workers, brought up to `wanted`."""
        self._team[:] = [worker for worker in self._team if not worker.dead]
        while len(self._team) < wanted:
            # A worker dies with the thread that started it (Linux ties the signal to that), so a lasting one does.
            self._starter = self._starter or ThreadPoolExecutor(1, thread_name_prefix="verifier-starter")
            self._team.append(self._starter.submit(_Worker, self.fn).result())
        return self._team


class _Round:
    """One `check`: items to do, items at work, and what came back."""

    def __init__(self, pool: VerifierPool, pairs: list[tuple[str, str]]) -> None:
        self.pool, self.pairs = pool, pairs
        self.results: list[bool | float | None] = [None] * len(pairs)
        self.todo = deque(range(len(pairs)))
        self.deaths: set[int] = set()

    def run(self) -> list[bool | float | None]:
        team: list[_Worker] = []
        while self.todo or any(worker.item is not None for worker in team):
            busy = sum(worker.item is not None for worker in team if not worker.dead)
            team = self.pool._staff(min(self.pool.workers, busy + len(self.todo)))
            for worker in team:
                if worker.idle and self.todo:
                    self._send(worker, self.todo.popleft())
            waited = [worker for worker in team if not worker.dead and not worker.idle]
            timeout = max(0.0, min(worker.deadline for worker in waited) - time.monotonic()) if waited else 0.0
            answered = wait([worker.connection for worker in waited], timeout)
            for worker in waited:
                self._look_at(worker, worker.connection in answered)
        return self.results

    def _send(self, worker: _Worker, item: int) -> None:
        try:
            worker.connection.send(self.pairs[item])
        except OSError:  # it died while idle, so the item is blameless
            self.todo.appendleft(item)
            self._bury(worker)
        else:
            worker.item, worker.deadline = item, time.monotonic() + self.pool.timeout_s

    def _look_at(self, worker: _Worker, answered: bool) -> None:
        if answered:
            try:
                self._take(worker, *worker.connection.recv())
            except (EOFError, OSError):
                self._bury(worker)
        elif time.monotonic() >= worker.deadline:
            if not worker.ready:
                raise VerifierError(f"a verifier worker for {self.pool.fn!r} took over {START_LIMIT_S} s to start")
            worker.kill()

    def _take(self, worker: _Worker, kind: str, value: Any) -> None:
        if kind == "ready":
            worker.ready = True
            return
        if kind == "unloadable":
            raise VerifierError(f"cannot load the verifier {self.pool.fn!r}: {value}")
        item, worker.item = worker.item, None
        assert item is not None
        if kind == "error":
            pair = ", ".join(f"{text!r:.500}" for text in self.pairs[item])
            raise VerifierError(f"the verifier {self.pool.fn!r} failed on item {item} ({pair}):\n{value}")
        self.results[item] = value

    def _bury(self, worker: _Worker) -> None:
        """A worker died by itself. Its item is tried once more: the death may have been the machine's fault."""
        item = worker.item
        worker.kill()
        code = worker.process.returncode
        if not worker.ready:
            raise VerifierError(f"a verifier worker for {self.pool.fn!r} died while it started (exit code {code})")
        logging.getLogger(__name__).warning("a verifier worker died (exit code %s) on item %s", code, item)
        if item is not None and item not in self.deaths:
            self.deaths.add(item)
            self.todo.append(item)


class _Worker:
    """A worker as its parent sees it."""

    def __init__(self, fn: str) -> None:
        self.connection, theirs = Pipe()
        self.item: int | None = None
        self.ready = self.dead = False
        self.deadline = time.monotonic() + START_LIMIT_S
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(os.getpid()), fn]
        with theirs:
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
            )

    @property
    def idle(self) -> bool:
        return self.ready and self.item is None and not self.dead

    def kill(self) -> None:
        self.dead, self.item = True, None
        self.process.kill()
        self.process.wait()
        self.connection.close()


# ---- in the worker ----


def serve() -> None:
    """A worker's life: load the function, then answer pairs until the parent is gone."""
    descriptor, parent, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    _die_with(parent)
    # A signal to the whole process group is the parent's to answer: it saves its step first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        fn = _load(name)
    except Exception as error:
        connection.send(("unloadable", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", None))
    try:
        while True:
            connection.send(_verdict(fn, *connection.recv()))
    except (EOFError, OSError):
        return


def _verdict(fn: Callable[[str, str], Any], prediction: str, reference: str) -> tuple[str, Any]:
    try:
        value = fn(prediction, reference)
        if not isinstance(value, bool) and not 0.0 <= (value := float(value)) <= 1.0:
            raise ValueError(f"it returned {value}, which is neither a bool nor a float in [0, 1]")
        return "verdict", value
    except VerifyTimeout:
        return "verdict", None
    except BaseException:  # even a SystemExit is the function's own fault, and its user is told
        return "error", traceback.format_exc()


def _load(name: str) -> Callable[[str, str], Any]:
    module, function = _split_name(name)
    loaded = getattr(importlib.import_module(module), function)
    if not callable(loaded):
        raise TypeError(f"{name} is not callable")
    return loaded


def _split_name(name: str) -> tuple[str, str]:
    module, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"a verifier is named 'package.module:function', not {name!r}")
    return module, function


def _die_with(parent: int) -> None:
    """Even a worker that hangs in C must not outlive a parent that was killed; an idle one sees its pipe close."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
