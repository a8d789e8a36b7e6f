"""The processes of a run: ranks, seeds, and stop signals."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from capo_fast.command import asked_to_stop
from capo_fast.config.schema import EngineConfig
from capo_fast.errors import CapoError, ConfigError, Interrupted, portable
from capo_fast.runtime.failures import FIRST, UNDER_TORCHRUN, one_error_shown, watched
from capo_fast.runtime.files import sweep_all
from capo_fast.runtime.hosts import GLOO, check_engines, choose_interface, find_places
from capo_fast.runtime.job import Job, enter_job, leave_job, this_job

PR_SET_PDEATHSIG = 1
T = TypeVar("T")


class StopSignal:
    """Turns SIGTERM and SIGINT into `Interrupted`, raised on all ranks at the same point."""

    def __init__(self) -> None:
        self._asked = asked_to_stop.is_set()
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True
        # A second Ctrl-C ends the process at once.
        signal.signal(number, signal.SIG_DFL)

    @property
    def asked(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._asked

    def ask(self) -> None:
        """Request a stop, as a signal does."""
        self._asked = True

    def close(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if any rank was asked to stop. A collective."""
        asked = torch.tensor(float(self._asked))
        dist.all_reduce(asked)
        if asked.item():
            raise Interrupted


class ForwardedStop(StopSignal):
    """Stop signal of a rank that only holds an engine: the learning ranks read it, and stop at a consistent state."""

    def check(self) -> None:
        """Never raises: the learning ranks decide."""


WHOLE_DAY_S = 86400.0
"""Time-out for ranks that have a collective only at the end of long work."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GROUP_VARIABLES = (*RANK_VARIABLES, GLOO)


@contextmanager
def ranks(timeout_s: float = 1800.0, engine: EngineConfig | None = None) -> Iterator[torch.device]:
    """This rank's device, inside torchrun's process group; without torchrun, inside a group of one.

    timeout_s: time limit of a collective. engine: if its `ranks` is not 0, each role has a process group of its own.
    With several ranks the first to fail raises its error, the others raise RankLost.
    """
    before = dict(os.environ)
    _check_launcher()
    if "RANK" not in os.environ:
        os.environ |= dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    timeout = timedelta(seconds=timeout_s)
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=timeout))
        places = find_places(store, rank, count)
        job = Job(store, rank, count, engine.ranks if engine else 0, timeout, places)
        enter_job(job)
        choose_interface(places, rank)
        if os.environ["LOCAL_RANK"] == "0":
            sweep_all()
        with watched(), one_error_shown():
            if engine is not None:
                check_roles(count, engine)
                check_devices(engine)
                check_engines(places, job.learners if engine.ranks else 0, engine.tensor_parallel)
            _meet(job)
            yield _join(job)
    finally:
        if dist.is_initialized():  # vLLM's shutdown destroys every group, the default one included
            dist.destroy_process_group()
        leave_job()
        for name in GROUP_VARIABLES:
            os.environ.pop(name, None)
        os.environ |= {name: before[name] for name in GROUP_VARIABLES if name in before}


def _check_launcher() -> None:
    """Raises ConfigError if RANK was set by something other than torchrun, such as Kubeflow in its pods."""
    missing = [name for name in RANK_VARIABLES if name not in os.environ]
    if missing and "RANK" in os.environ:
        raise ConfigError(f"RANK: found without {', '.join(missing)}, wanted all of them (set by torchrun) or no RANK")


def _meet(job: Job) -> None:
    """Wait until all ranks have passed their checks. Raises CapoError if one has exited; its own error is printed."""
    end = time.monotonic() + job.timeout.total_seconds()
    job.store.add(CHECKED, 1)
    while job.store.add(CHECKED, 0) < job.count and time.monotonic() < end:
        if job.store.check([FIRST]):
            raise CapoError("another rank exited before all ranks had passed their checks")
        time.sleep(MEET_PAUSE_S)


CHECKED = "capo_fast/checked"
MEET_PAUSE_S = 0.2


def _join(job: Job) -> torch.device:
    """Enter the process group of this rank's role; returns this rank's device."""
    role, rank, count = job.in_role()
    place: Any = dict(store=dist.PrefixStore(role, job.store), rank=rank, world_size=count, timeout=job.timeout)
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", **place)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl", **place)
    return device


@contextmanager
def rank_of_role() -> Iterator[None]:
    """Set RANK and WORLD_SIZE to this rank's place in its role, not in the job: vLLM reads them when it starts."""
    before, (_, rank, count) = dict(os.environ), this_job().in_role()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    try:
        yield
    finally:
        os.environ |= {name: before[name] for name in ("RANK", "WORLD_SIZE")}


def die_with_launcher() -> None:
    """Under torchrun: be killed when it is killed. A surviving rank would write to the files of the resumed run."""
    if UNDER_TORCHRUN in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class EngineGroup:
    """The ranks that share one engine: `engine.tensor_parallel` neighbours. All of them send it the same requests."""

    index: int
    """Index of this rank's group."""
    count: int
    """Number of groups."""
    is_first: bool
    """Whether this rank is the first of its group: its answers count, the others have the same answers."""

    def gather(self, items: list[Any]) -> list[Any]:
        """The concatenated lists of all groups, each counted once. A collective on all ranks."""
        return gather(items if self.is_first else [])


def engine_group(tensor_parallel: int) -> EngineGroup:
    """This rank's engine group, among the ranks of its role. Raises ConfigError if these can't be divided evenly."""
    rank, world = dist.get_rank(), dist.get_world_size()
    check_divisible(world, tensor_parallel)
    return EngineGroup(rank // tensor_parallel, world // tensor_parallel, rank % tensor_parallel == 0)


def check_divisible(world: int, tensor_parallel: int, name: str = "the number of ranks") -> None:
    """Raises ConfigError if `world` ranks can't be divided into engine groups."""
    if world % tensor_parallel:
        raise ConfigError(f"engine.tensor_parallel: found {tensor_parallel}, wanted a divisor of {name}, {world}")


def check_roles(count: int, engine: EngineConfig) -> None:
    """Raises ConfigError if `count` ranks can't be divided into roles and engines."""
    if engine.ranks == 0:
        check_divisible(count, engine.tensor_parallel)
        return
    if engine.ranks >= count:
        wanted = f"at most {count - 1} of {count} ranks: the others learn"
        if count == 1:
            wanted = "0 with one rank: on one device generation and learning have nothing to overlap"
        raise ConfigError(f"engine.ranks: found {engine.ranks}, wanted {wanted}")
    check_divisible(engine.ranks, engine.tensor_parallel, "engine.ranks")


def check_devices(engine: EngineConfig) -> None:
    """Raises ConfigError if engines have ranks of their own and ranks of this node share a GPU."""
    wanted, found = local_ranks(), torch.cuda.device_count()
    if engine.ranks and torch.cuda.is_available() and found < wanted:
        raise ConfigError(
            f"engine.ranks: found {found} GPUs for {wanted} ranks on this node, wanted one for each: "
            "on a shared device generation and learning have nothing to overlap"
        )


def local_ranks() -> int:
    """The number of the job's ranks on this rank's node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def gather(items: list[Any], group: Any = None) -> list[Any]:
    """The concatenated lists of all ranks. A collective. group: a process group of all ranks; None: the default one."""
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, items, group)
    return [item for part in lists for item in part]


def on_first_rank(work: Callable[[], T], group: Any = None) -> T:
    """Run `work` on rank 0; every rank returns its result or raises its error. A collective."""
    mine = _outcome(work) if dist.get_rank() == 0 else NO_OUTCOME
    outcomes = [_sent(mine)]
    dist.broadcast_object_list(outcomes, src=0, group=group)
    return _values([mine] if dist.get_rank() == 0 else outcomes)[0]


def on_every_rank(work: Callable[[], T], group: Any = None) -> list[T]:
    """The results of `work` on each rank, in their order; every rank raises the error of the first that fails. A
    collective."""
    return _values(_gathered(_outcome(work), group))


def once_a_node(work: Callable[[], T]) -> T:
    """Run `work` on the first rank of each node; its ranks return the result or raise the error. A collective."""
    rank = dist.get_rank()
    first = max(rank - int(os.environ["LOCAL_RANK"]), 0)  # this node may also have lower ranks of another role
    return _values(_gathered(_outcome(work) if rank == first else NO_OUTCOME))[first]


Outcome = tuple[Any, Exception | None]
"""A returned value and None, or None and the raised error."""
NO_OUTCOME: Outcome = (None, None)


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _sent(mine: Outcome) -> Outcome:
    """The outcome as other ranks get it."""
    value, failed = mine
    return value, None if failed is None else portable(failed, this_job().name(this_job().rank))


def _gathered(mine: Outcome, group: Any = None) -> list[Outcome]:
    """The outcomes of all ranks; this rank's own error keeps its traceback."""
    outcomes = gather([_sent(mine)], group)
    outcomes[dist.get_rank()] = mine
    return outcomes


def _values(outcomes: Sequence[Outcome]) -> list[Any]:
    """The returned values. Raises the first error."""
    for _, failed in outcomes:
        if failed is not None:
            raise failed
    return [value for value, _ in outcomes]


def seed_everything(seed: int) -> None:
    """Seed the global generators. The run's own draws derive their seeds from `config.seed` directly."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def free_port() -> int:
    """A port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
