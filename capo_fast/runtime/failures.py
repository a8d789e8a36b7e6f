"""Failures of one rank among several: its error is printed once and first, the others name it, and no rank hangs.

The ranks exchange reports through the job's store, which under torchrun outlives them all.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import torch.distributed as dist

from capo_fast.errors import CapoError, Interrupted
from capo_fast.runtime.job import LostRank, this_job
from capo_fast.runtime.watch import Watch
from capo_fast.terminal import print_line

T = TypeVar("T")

PEER_S = 5.0
"""Limit, seconds, for a failed rank to publish its reason, for its error to be printed, and for a store request."""
STACKS_S = 2.0
"""Seconds between a rank's deadline and its exit: ranks that wait for it print the stacks of the same collective."""
BACKSTOP_S = 10.0
"""Seconds after a deadline until faulthandler ends a process whose threads can't run."""
NOTICE_S = 10.0
"""Seconds in which the main thread must notice that another rank is lost; then the process exits at once."""

FIRST, SHOWN, LINE = "capo_fast/first_to_end", "capo_fast/first_error_shown", "capo_fast/line_shown"
DEADLINE = "exceeded its deadline"
ADVICE = "; its error is the one to read"


class RankLost(CapoError):
    """Another rank failed first. Its error is the one to read; its exit status, if known, is that of all ranks. One
    rank per node prints the line."""

    def __init__(self, message: str, shows: bool, exit_status: int = CapoError.exit_status) -> None:
        super().__init__(message)
        self.quiet = not shows
        self.exit_status = exit_status


class Peers:
    """Reports between the ranks of a job about how they ended. Works after their process groups are destroyed."""

    def __init__(self) -> None:
        job = this_job()
        self.rank = job.rank
        # A connection of its own: a collective that hangs may hold the job's.
        self._store = job.store.clone()
        self._store.set_timeout(timedelta(seconds=PEER_S))

    def claim(self, how: str) -> str | None:
        """Publish how this rank ends. Returns None, or the report that came first."""
        return self.report(f"{this_job().name(self.rank)} {how}{ADVICE}")

    def report(self, end: str) -> str | None:
        """Publish how a rank ended. Returns None, or the report that came first."""
        first = _with_timeout(lambda: self._store.compare_set(FIRST, "", end).decode())
        return None if first == end else first

    def shows_line(self) -> bool:
        """Returns True once, on the rank that prints the line about another rank's end: the first of its node to call
        this or, if the store was lost with another host, the node's first rank."""
        job, name = this_job(), str(self.rank)
        if not job.lost.line.acquire(blocking=False):
            return False
        try:
            return _with_timeout(lambda: self._store.compare_set(f"{LINE}/{job.node}", "", name).decode()) == name
        except dist.DistError:
            return job.node == self.rank

    def first(self) -> tuple[str | None, int]:
        """The first report and its rank's exit status, once that rank's error has been printed. The report is None if
        the rank was killed."""
        if not _wait_until(PEER_S, lambda: _with_timeout(lambda: self._store.check([FIRST]))):
            return None, CapoError.exit_status
        shown = _wait_until(PEER_S, lambda: _with_timeout(lambda: self._store.check([SHOWN])))
        status = int(self._store.get(SHOWN)) if shown else CapoError.exit_status
        return self._store.get(FIRST).decode(), status

    def mark_shown(self, exit_status: int = CapoError.exit_status) -> None:
        """Publish that this rank's error has been printed."""
        with suppress(dist.DistError):  # no other rank is left
            _with_timeout(lambda: self._store.set(SHOWN, str(exit_status)))


@contextmanager
def one_error_shown() -> Iterator[None]:
    """Re-raises an error on the rank where it came first; raises RankLost in its place on every other rank.

    An error that all ranks meet is printed once. Collectives that broke because another rank failed, was killed or
    exceeded its deadline are not printed.
    """
    peers = Peers() if this_job().count > 1 else None
    try:
        yield
    except (Interrupted, RankLost):
        raise
    except Exception as error:
        if peers is not None:
            _raise_if_not_first(peers, error)
        raise


@contextmanager
def watched() -> Iterator[None]:
    """End this process if another rank is lost and the main thread does not notice in time."""
    job = this_job()
    if job.count == 1:
        yield
        return
    end_launcher = partial(_end_launcher, job.lost, _launcher())
    atexit.register(end_launcher)  # first, so that it runs after the libraries' exit handlers
    with one_error_shown():  # rank 0 may have failed, and closed its server, before this one connects
        watch = Watch(job, partial(_end_after, Peers(), end_launcher))
    try:
        yield
    finally:
        watch.close()


def _end_after(peers: Peers, end_launcher: Callable[[], None], end: str) -> None:
    """Print that another rank was lost; exit unless the main thread handles it within NOTICE_S. Runs in a thread."""
    lost = this_job().lost
    try:
        first = peers.report(end)
        if first is None:
            peers.mark_shown()  # no other line comes
        end = first or end
    except dist.DistNetworkError:  # the store was lost with the rank's host
        pass
    except dist.DistStoreError:
        lost.silent = True
    lost.note(end)
    if peers.shows_line():  # at once: its launcher may end this process before the main thread notices
        print_line(CapoError.label, end)
    if lost.handled.wait(NOTICE_S):
        return
    end_launcher()
    os._exit(CapoError.exit_status)


def _end_launcher(lost: LostRank, launcher: psutil.Process | None) -> None:
    """Kill torchrun if the host of its store does not respond, after the node's ranks have exited. It would wait for
    the store until TCP times out after about 15 minutes, and ignore signals. The node's first rank does so last."""
    if lost.silent and launcher is not None:
        time.sleep(STACKS_S)
        with suppress(psutil.NoSuchProcess):
            launcher.kill()


def _launcher() -> psutil.Process | None:
    """The torchrun among the parents of its first rank (a script may be between them), else the parent."""
    if UNDER_TORCHRUN not in os.environ or os.environ["LOCAL_RANK"] != "0":
        return None
    parents = psutil.Process().parents()
    return next(filter(_is_torchrun, parents), next(iter(parents), None))


def _is_torchrun(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has exited, or belongs to another user
        return not {"torchrun", "torch.distributed.run"}.isdisjoint(Path(word).name for word in process.cmdline())
    return False


UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"


def _raise_if_not_first(peers: Peers, error: Exception) -> None:
    lost = this_job().lost
    lost.handled.set()
    broken, first, status = connection_lost(error), None, CapoError.exit_status
    with suppress(dist.DistError):  # the store exited with the rank that held it
        if not broken and peers.claim("failed") is None:
            # The error is printed later, by `run_command` or as a traceback at exit.
            atexit.register(peers.mark_shown, getattr(error, "exit_status", CapoError.exit_status))
            return
        first, status = peers.first()
    first = first or lost.wait(PEER_S)
    if first is not None and DEADLINE in first:
        waited = "".join(traceback.format_exception(error))
        write_stacks(
            peers.rank, f"{first.removesuffix(ADVICE)}; this rank waited here (its other threads follow):", waited
        )
    if first is not None:
        raise RankLost(first, peers.shows_line(), status) from None
    if broken:
        line = str(error).partition("\n")[0].partition(". ")[0][:200]
        raise RankLost(
            f"another rank died without an error message, as if killed ({line})", peers.shows_line()
        ) from None


PEER_LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket closed|(read|write) error|ncclRemote", re.IGNORECASE
)
"""Messages of a lost connection. Time-outs and NCCL errors of this rank's own device don't match: they are printed."""


def connection_lost(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, is gloo's, NCCL's or the store's error for a lost peer."""
    while error is not None:
        # In any other error such a text is about a service of the user's code, a critic's server or a file.
        collective = isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo/" in str(error))
        if isinstance(error, dist.DistNetworkError) or (collective and PEER_LOST.search(str(error))):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


class Deadline:
    """Ends this process if a stage lasts too long, and writes the stacks of all its threads to standard error.

    A stage lasts until the next one starts, so its time includes waiting for other ranks. A thread writes the stacks
    with rank and stage. If no thread can run (the GIL is held), faulthandler writes them without names `BACKSTOP_S`
    later.
    """

    def __init__(self, seconds: float) -> None:
        """seconds: limit of one stage. Needs a current job."""
        self._seconds = seconds
        self._peers = Peers()
        self._timer = threading.Timer(0, int)

    def start(self, stage: str) -> None:
        """Restart the deadline for `stage`."""
        self.stop()
        faulthandler.dump_traceback_later(self._seconds + BACKSTOP_S, exit=True, file=2)
        self._timer = threading.Timer(self._seconds, self._expire, [stage])
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Cancel the deadline."""
        faulthandler.cancel_dump_traceback_later()
        self._timer.cancel()

    def _expire(self, stage: str) -> None:
        limit = f"stage {stage} has lasted more than {self._seconds:g} s (train.stage_timeout_s)"
        write_stacks(self._peers.rank, f"error: {limit}; the stacks of all threads:")
        with suppress(dist.DistError):
            self._peers.claim(f"{DEADLINE} in stage {stage}")
            self._peers.mark_shown()
        time.sleep(STACKS_S)
        os._exit(1)


def write_stacks(rank: int, title: str, more: str = "") -> None:
    """Write the stacks of all threads but this one to standard error in one piece; each line names the rank."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    text = f"{title}\n{more}"
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            text += f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
    lines = "".join(f"capo_fast, rank {rank}: {line}\n" for line in text.splitlines())
    with suppress(OSError):  # a broken standard error must not stop a process from exiting
        os.write(2, lines.encode())


def _with_timeout(request: Callable[[], T]) -> T:
    """The result of a request to the job's store. Raises DistStoreError after PEER_S: most requests have no time-out of
    their own, and the store's host may not respond."""
    answer: Future[T] = Future()

    def send() -> None:
        try:
            answer.set_result(request())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=send, daemon=True).start()
    try:
        return answer.result(PEER_S)
    except TimeoutError:
        raise dist.DistStoreError(f"no answer in {PEER_S:g} s") from None


def _wait_until(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true in time."""
    end = time.monotonic() + seconds
    while not (now := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return now
