"""Killable worker processes that check answers, with one deadline per call of the reward function.

A comparison may never return (a policy wrote one side of it), so every call runs in a worker that its parent can kill.
Workers are fresh interpreters, not forks and not `multiprocessing`'s spawn: that would run the main script again, with
torch and the engine, in each of them. `worker.py` has the protocol.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

from capo_fast.errors import CapoError
from capo_fast.terminal import print_line
from capo_fast.verify.functions import Item, Verdict, split_name
from capo_fast.verify.process import START_LIMIT_S, Setup, WorkerProcess

MEMORY_PAUSE_S = 0.05
"""Interval of the memory checks of the workers."""
T = TypeVar("T")


class VerifierError(CapoError):
    """The reward function failed, could not be loaded, or returned no verdict: a bug in it, not a wrong answer."""


class WorkerPool(Generic[T]):
    """Calls a function on (response, reference) pairs in `workers` processes, at most `timeout_s` seconds for each.

    `fn` names a function with the parameters of a reward function (`functions.py`), which returns any T; one that takes
    lists gets all items of a `check` in one call with one deadline. `memory_gb` limits a worker's resident memory, GiB:
    a worker above it is killed, and allocations beyond twice as much fail (Linux). `settings` are passed to a function
    with parameters of those names. Workers start at the first `check` and persist; several threads may share a pool and
    take turns.
    """

    _wants_verdicts = False

    def __init__(
        self,
        fn: str,
        workers: int = 2,
        timeout_s: float = 10.0,
        memory_gb: float | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(f"workers and timeout_s must be positive, not {workers} and {timeout_s}")
        split_name(fn)
        self.workers, self.timeout_s, self.fn = workers, timeout_s, fn
        self.memory = None if memory_gb is None else int(memory_gb * 2**30)
        self.settings = dict(settings or {})
        self._team: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._starter: ThreadPoolExecutor | None = None
        self._queue: ThreadPoolExecutor | None = None
        self._submitted: SimpleQueue[tuple[list[Item], Future[list[T | None]]]] = SimpleQueue()

    @property
    def _setup(self) -> Setup:
        most = None if self.memory is None else 2 * self.memory
        return self.fn, self.settings, most, self._wants_verdicts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a running check and kills the workers; a later `check` starts new ones."""
        if self._queue is not None:
            self._queue.shutdown(cancel_futures=True)
            self._queue = None
        self._kill_workers()

    def check(self, items: Sequence[Item | tuple[str, str]]) -> list[T | None]:
        """The value of `fn` for each item, in order; None if it timed out, took too much memory, or killed two workers.

        Raises `VerifierError` with the item and the worker's traceback if `fn` raises, and if it can't be loaded.
        """
        with self._lock:
            try:
                return _Round(self, [Item(*item) for item in items]).run()
            except BaseException:
                self._kill_workers()  # a running item would answer in the next round
                raise

    def submit(self, items: Sequence[Item | tuple[str, str]]) -> Future[list[T | None]]:
        """`check` in the background, in one round with all items submitted while the previous round runs."""
        future: Future[list[T | None]] = Future()
        self._submitted.put(([Item(*item) for item in items], future))
        self._queue = self._queue or ThreadPoolExecutor(1, thread_name_prefix="verifier-queue")
        self._queue.submit(self._check_submitted)
        return future

    def _check_submitted(self) -> None:
        waiting = [self._submitted.get_nowait() for _ in range(self._submitted.qsize())]
        try:
            verdicts = iter(self.check([item for items, _ in waiting for item in items]))
            for items, future in waiting:
                future.set_result([next(verdicts) for _ in items])
        except Exception as error:
            for _, future in waiting:
                future.set_exception(error)

    def _running_workers(self, wanted: int) -> list[WorkerProcess]:
        """The running workers; starts new ones up to `wanted`."""
        self._team[:] = [worker for worker in self._team if not worker.dead]
        while len(self._team) < wanted:
            # Linux sends the parent-death signal when the starting thread exits, so a persistent thread starts workers.
            self._starter = self._starter or ThreadPoolExecutor(1, thread_name_prefix="verifier-starter")
            self._team.append(self._starter.submit(WorkerProcess, self._setup).result())
        return self._team

    def _kill_workers(self) -> None:
        for worker in self._team:
            worker.kill()
        self._team.clear()
        if self._starter is not None:
            self._starter.shutdown()
            self._starter = None


class VerifierPool(WorkerPool[Verdict]):
    """A pool of the rule verifier, or of a user's reward function in its place.

    A value that is no bool and no float in [0, 1] raises `VerifierError`.

    >>> with VerifierPool(workers=1) as pool:
    ...     pool.check([("\\\\boxed{1/2}", "0.5"), ("the answer is 3", "4")])
    [True, False]
    """

    _wants_verdicts = True

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 10.0,
        fn: str = "capo_fast.verify:answers_equal",
        memory_gb: float | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(fn, workers, timeout_s, memory_gb, settings)


class _Round:
    """One `check`: pending items, running items and results."""

    def __init__(self, pool: WorkerPool[Any], items: list[Item]) -> None:
        self.pool, self.items = pool, items
        self.results: list[Any] = [None] * len(items)
        self.todo = deque(range(len(items)))
        self.deaths: set[int] = set()
        self.too_large: list[int] = []

    def run(self) -> list[Any]:
        team: list[WorkerProcess] = []
        while self.todo or any(worker.work for worker in team):
            busy = sum(bool(worker.work) for worker in team)
            team = self.pool._running_workers(min(self.pool.workers, busy + len(self.todo)))
            for worker in team:
                if worker.idle and self.todo:
                    self._send(worker)
            waited = [worker for worker in team if not worker.dead and not worker.idle]
            answered = wait([worker.connection for worker in waited], self._wait_seconds(waited))
            for worker in waited:
                self._handle(worker, worker.connection in answered)
        if self.too_large:
            self._report_memory()
        return self.results

    def _wait_seconds(self, waited: Sequence[WorkerProcess]) -> float:
        if not waited:
            return 0.0
        left = max(0.0, min(worker.deadline for worker in waited) - time.monotonic())
        return left if self.pool.memory is None else min(left, MEMORY_PAUSE_S)

    def _send(self, worker: WorkerProcess) -> None:
        """The next item, or all of them to a function that takes lists."""
        work = [self.todo.popleft() for _ in range(len(self.todo) if worker.batch else 1)]
        try:
            worker.connection.send([self.items[item] for item in work])
        except OSError:  # it died while idle, so the items are not the cause
            self.todo.extendleft(reversed(work))
            self._handle_death(worker)
        else:
            worker.work, worker.deadline = work, time.monotonic() + self.pool.timeout_s

    def _handle(self, worker: WorkerProcess, answered: bool) -> None:
        if answered:
            try:
                self._handle_message(worker, *worker.connection.recv())
            except (EOFError, OSError):
                self._handle_death(worker)
        elif time.monotonic() >= worker.deadline:
            if not worker.ready:
                raise VerifierError(f"a verifier worker for {self.pool.fn!r} took over {START_LIMIT_S} s to start")
            worker.kill()
        elif self.pool.memory is not None and worker.resident() > self.pool.memory:
            self._handle_too_large(worker)

    def _handle_message(self, worker: WorkerProcess, kind: str, value: Any) -> None:
        match kind:
            case "ready":
                worker.ready, worker.batch = True, value
            case "unloadable":
                raise VerifierError(f"cannot load the reward function {self.pool.fn!r}: {value}")
            case "memory":
                self._handle_too_large(worker)
            case "error":
                where = self._describe(worker.work)
                raise VerifierError(f"the reward function {self.pool.fn!r} failed on {where}:\n{value}")
            case _:
                for item, verdict in zip(worker.work, value, strict=True):
                    self.results[item] = verdict
                worker.work = []

    def _handle_death(self, worker: WorkerProcess) -> None:
        """A worker died. Its items are retried once, as the machine may have been the cause."""
        work = worker.work
        worker.kill()
        code = worker.process.returncode
        if not worker.ready:
            raise VerifierError(f"a verifier worker for {self.pool.fn!r} died while it started (exit code {code})")
        if not work:
            return
        print_line("warning", f"a verifier worker died (exit code {code}) on {self._describe(work)}")
        self.todo.extend(item for item in work if item not in self.deaths)
        self.deaths.update(work)

    def _handle_too_large(self, worker: WorkerProcess) -> None:
        if not worker.ready:
            raise VerifierError(f"a verifier worker for {self.pool.fn!r} needs more memory than it may have to start")
        self.too_large += worker.work
        worker.kill()

    def _report_memory(self) -> None:
        assert self.pool.memory is not None
        print_line(
            "warning",
            f"{self.pool.fn}: {len(self.too_large)} of {len(self.items)} answers have no verdict: a worker had more "
            f"than {self.pool.memory / 2**30:.3g} GiB (reward.memory_limit) on {self._describe(self.too_large[:1])}",
        )

    def _describe(self, work: Sequence[int]) -> str:
        pair = ", ".join(f"{text!r:.500}" for text in self.items[work[0]][:2])
        more = f" and {len(work) - 1} more" if len(work) > 1 else ""
        return f"item {work[0]} ({pair}){more}"
