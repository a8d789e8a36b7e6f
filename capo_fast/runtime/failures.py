"""How one rank of several ends: its error is shown once and first, the others name it, and none waits for ever.

The ranks tell each other through the job's store, which under torchrun outlives them all.
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
"""Seconds within which a rank that has ended has given its reason, its error is shown, or the job's store answers."""
STACKS_S = 2.0
"""Seconds between a rank's deadline and its end. Ranks that wait for it reach their own deadlines about now, and its
end would break the collective that their stacks are to show."""
BACKSTOP_S = 10.0
"""Seconds after a deadline until faulthandler ends a process whose threads can't run."""
NOTICE_S = 10.0
"""Seconds in which a rank that has lost another must notice it where it waits or works; then it ends at once."""

FIRST, SHOWN, LINE = "capo_fast/first_to_end", "capo_fast/first_error_shown", "capo_fast/line_shown"
DEADLINE = "went over its deadline"
ADVICE = "; its error is the one to read"


class RankLost(CapoError):
    """Another rank ended first: its error is the one to read, and its exit status, where known, is that of all. One
    rank of each node shows the line."""

    def __init__(self, message: str, shows: bool, exit_status: int = CapoError.exit_status) -> None:
        super().__init__(message)
        self.quiet = not shows
        self.exit_status = exit_status


class Peers:
    """All ranks of the job, as far as they tell each other how they end. Outlives their process groups."""

    def __init__(self) -> None:
        job = this_job()
        self.rank = job.rank
        # A connection of its own: the job's may be held by a collective that waits for ever.
        self._store = job.store.clone()
        self._store.set_timeout(timedelta(seconds=PEER_S))

    def claim(self, how: str) -> str | None:
        """Say how this rank ends. None, or what was said before it."""
        return self.report(f"{this_job().name(self.rank)} {how}{ADVICE}")

    def report(self, end: str) -> str | None:
        """Say how a rank has ended. None, or what was said before it."""
        first = _in_time(lambda: self._store.compare_set(FIRST, "", end).decode())
        return None if first == end else first

    def shows_line(self) -> bool:
        """Whether this rank shows the line of another's end, as the first of its node to ask; where the store is gone
        with another host, the first of the node. True once."""
        job, name = this_job(), str(self.rank)
        if not job.lost.line.acquire(blocking=False):
            return False
        try:
            return _in_time(lambda: self._store.compare_set(f"{LINE}/{job.node}", "", name).decode()) == name
        except dist.DistError:
            return job.node == self.rank

    def first(self) -> tuple[str | None, int]:
        """What the rank that ended first said, once its error has been shown, and its exit status; None if it was
        killed."""
        if not _within(PEER_S, lambda: _in_time(lambda: self._store.check([FIRST]))):
            return None, CapoError.exit_status
        shown = _within(PEER_S, lambda: _in_time(lambda: self._store.check([SHOWN])))
        status = int(self._store.get(SHOWN)) if shown else CapoError.exit_status
        return self._store.get(FIRST).decode(), status

    def shown(self, exit_status: int = CapoError.exit_status) -> None:
        """This rank's error has been shown."""
        with suppress(dist.DistError):  # there is no one left to tell
            _in_time(lambda: self._store.set(SHOWN, str(exit_status)))


@contextmanager
def one_error_shown() -> Iterator[None]:
    """Lets an error out where it came first; raises RankLost in its place on every other rank.

    So an error that all ranks meet is shown once, and the broken collectives of those that waited for a rank that
    failed, was killed or went over its deadline are not shown at all.
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
    """End this process where another rank is gone and the main thread, in a collective or at work, does not notice."""
    job = this_job()
    if job.count == 1:
        yield
        return
    end_launcher = partial(_end_launcher, job.lost, _launcher())
    atexit.register(end_launcher)  # first, so that it runs after what libraries have for the end
    with one_error_shown():  # rank 0 may have failed, and closed its server, before this one came
        watch = Watch(job, partial(_end_after, Peers(), end_launcher))
    try:
        yield
    finally:
        watch.close()


def _end_after(peers: Peers, end_launcher: Callable[[], None], end: str) -> None:
    """Called in a thread of its own."""
    lost = this_job().lost
    try:
        first = peers.report(end)
        if first is None:
            peers.shown()  # no other line comes
        end = first or end
    except dist.DistNetworkError:  # the store is gone with the rank's host
        pass
    except dist.DistStoreError:
        lost.silent = True
    lost.note(end)
    if peers.shows_line():  # now: its launcher may end this process before the main thread notices
        print_line(CapoError.label, end)
    if lost.handled.wait(NOTICE_S):
        return
    end_launcher()
    os._exit(CapoError.exit_status)


def _end_launcher(lost: LostRank, launcher: psutil.Process | None) -> None:
    """Kill torchrun where the host of its store is silent, after the node's ranks have ended: it would wait for the
    store until TCP gives up in some 15 minutes, and end on no signal. The node's first rank does so last."""
    if lost.silent and launcher is not None:
        time.sleep(STACKS_S)
        with suppress(psutil.NoSuchProcess):
            launcher.kill()


def _launcher() -> psutil.Process | None:
    """The torchrun whose first rank this is, behind a script between the two; else the parent."""
    if UNDER_TORCHRUN not in os.environ or os.environ["LOCAL_RANK"] != "0":
        return None
    parents = psutil.Process().parents()
    return next(filter(_is_torchrun, parents), next(iter(parents), None))


def _is_torchrun(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has ended, or is another user's
        return not {"torchrun", "torch.distributed.run"}.isdisjoint(Path(word).name for word in process.cmdline())
    return False


UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"


def _raise_if_not_first(peers: Peers, error: Exception) -> None:
    lost = this_job().lost
    lost.handled.set()
    broken, first, status = connection_lost(error), None, CapoError.exit_status
    with suppress(dist.DistError):  # the store ended with the rank that kept it
        if not broken and peers.claim("failed") is None:
            # The error is shown after this, by `run_command` or at the end as a traceback.
            atexit.register(peers.shown, getattr(error, "exit_status", CapoError.exit_status))
            return
        first, status = peers.first()
    first = first or lost.wait(PEER_S)
    if first is not None and DEADLINE in first:
        waited = "".join(traceback.format_exception(error))
        write_stacks(
            peers.rank, f"{first.removesuffix(ADVICE)}; this rank waited here, beside its other threads:", waited
        )
    if first is not None:
        raise RankLost(first, peers.shows_line(), status) from None
    if broken:
        line = str(error).partition("\n")[0].partition(". ")[0][:200]
        raise RankLost(f"another rank has ended without a word, as if killed ({line})", peers.shows_line()) from None


PEER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket closed|gloo/transport.*(read|write) error|ncclRemote",
    re.IGNORECASE,
)
"""A time-out, or what NCCL says of this rank's own device, is not among them: such an error is shown."""


def connection_lost(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, is how gloo, NCCL or the store say that a peer has gone."""
    while error is not None:
        # What our own errors say is of something else, as of a critic's server.
        says_so = isinstance(error, dist.DistNetworkError) or PEER_GONE.search(str(error))
        if says_so and not isinstance(error, CapoError):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


class Deadline:
    """Ends this process where a stage lasts too long, with the stacks of all its threads on standard error.

    A stage lasts until the next one starts: its time has in it what the rank waits for others at its end. A thread
    writes the stacks, with rank and stage; where none can run (the GIL is held) faulthandler writes them, nameless,
    `BACKSTOP_S` later.
    """

    def __init__(self, seconds: float) -> None:
        """Inside a job."""
        self._seconds = seconds
        self._peers = Peers()
        self._timer = threading.Timer(0, int)

    def start(self, stage: str) -> None:
        """The deadline is now that of `stage`."""
        self.stop()
        faulthandler.dump_traceback_later(self._seconds + BACKSTOP_S, exit=True, file=2)
        self._timer = threading.Timer(self._seconds, self._expire, [stage])
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """No deadline any more."""
        faulthandler.cancel_dump_traceback_later()
        self._timer.cancel()

    def _expire(self, stage: str) -> None:
        limit = f"stage {stage} has lasted more than {self._seconds:g} s (train.stage_timeout_s)"
        write_stacks(self._peers.rank, f"error: {limit}; the stacks of all threads:")
        with suppress(dist.DistError):
            self._peers.claim(f"{DEADLINE} in stage {stage}")
            self._peers.shown()
        time.sleep(STACKS_S)
        os._exit(1)


def write_stacks(rank: int, what: str, more: str = "") -> None:
    """Stacks of all threads but this one on standard error, in one piece; each line names the rank."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    text = f"{what}\n{more}"
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            text += f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
    lines = "".join(f"capo_fast, rank {rank}: {line}\n" for line in text.splitlines())
    with suppress(OSError):  # a broken standard error must not keep a process from its end
        os.write(2, lines.encode())


def _in_time(request: Callable[[], T]) -> T:
    """The answer of the job's store. Raises DistStoreError where it does not come: most requests have no time-out of
    their own, and its host may be silent."""
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(request())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(PEER_S)
    except TimeoutError:
        raise dist.DistStoreError(f"no answer in {PEER_S:g} s") from None


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not (now := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return now
