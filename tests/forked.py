"""Processes forked from one that has imported everything, so that starting one is cheap."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

FORKS = multiprocessing.get_context("forkserver")
SCRIPTED = [
    *("hosts_run", "learner_ranks", "ranks_run", "roles_run", "scripted_run"),
    # What a run imports when it comes to it: its parts, the model's class, PEFT, the event file's writer.
    *("capo_fast.build", "transformers.models.qwen2.modeling_qwen2", "peft", "torch.utils.tensorboard"),
]
# Where torch has CUDA, what vLLM's import may have touched of it does not survive a fork.
ENGINE = [] if torch.version.cuda else ["engine_preload"]


def start_server(*more: str) -> None:
    """A process has one server: the first call says what it imports beside SCRIPTED. What it has not imported, the
    processes forked from it import themselves."""
    FORKS.set_forkserver_preload([*SCRIPTED, *more])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))
        patch.setenv("OMP_NUM_THREADS", "1")  # what it imports may start OpenMP's threads, which no fork inherits
        forkserver.ensure_running()


def run_ranks(
    target: Callable[..., Any], log: Path, *arguments: Any, world: int = 2, per_node: int | None = None
) -> tuple[list[int | None], str]:
    """The statuses of ranks that run `target(*arguments)`, started as torchrun does, and their output in its order.

    per_node: ranks of a node; None: all.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's agent keeps one, too
    log.touch()
    place = (world, per_node or world, store.port)
    children = [FORKS.Process(target=_rank, args=(rank, *place, log, target, arguments)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
        child.kill()
        child.join()
    return [child.exitcode for child in children], log.read_text()


def train(arguments: list[str]) -> None:
    """The command, a target of `run_ranks`."""
    end(importlib.import_module("capo_fast.train").main(arguments))


def end(status: int) -> None:
    """Exit like an interpreter, not like multiprocessing's children, which skip the libraries' exit handlers:
    vLLM's would leave its shared memory behind, and the next run fail over it."""
    ctypes.pythonapi.Py_Exit(ctypes.c_int(status))


def _rank(
    rank: int, world: int, per_node: int, port: int, log: Path, target: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """torchrun's environment, with a store that outlives the ranks; output to a file. At the end it does what has been
    registered for it, which multiprocessing's children leave out: a rank that fails says so there to the others."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    output_to(log)
    try:
        target(*arguments)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def output_to(log: Path) -> None:
    """Redirect standard output and error of this process, and of all its libraries, to a file."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
