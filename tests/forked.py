"""Processes that start quickly, because they are forked from one that has imported everything."""

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
    # Imports that a run makes late: its parts, the model's class, PEFT, TensorBoard's writer.
    *("capo_fast.build", "transformers.models.qwen2.modeling_qwen2", "peft", "torch.utils.tensorboard"),
]
# vLLM's import may initialise parts of CUDA, which do not survive a fork.
ENGINE = [] if torch.version.cuda else ["engine_preload"]


def start_server(*more: str) -> None:
    """Start the fork server, which imports SCRIPTED and `more`. A process has one server: only the first call's imports
    count. Forked processes import any other module themselves."""
    FORKS.set_forkserver_preload([*SCRIPTED, *more])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))
        patch.setenv("OMP_NUM_THREADS", "1")  # its imports may start OpenMP's threads, which no fork inherits
        forkserver.ensure_running()


def run_ranks(
    target: Callable[..., Any], log: Path, *arguments: Any, world: int = 2, per_node: int | None = None
) -> tuple[list[int | None], str]:
    """Run `target(*arguments)` on ranks that start as under torchrun. Returns their exit statuses and joint output.

    per_node: ranks per node; None: all.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent does
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
    """The command `capo_fast.train`, as a target of `run_ranks`."""
    exit_process(importlib.import_module("capo_fast.train").main(arguments))


def exit_process(status: int) -> None:
    """Exit like an interpreter. Children of multiprocessing skip the libraries' exit handlers: vLLM's shared memory
    would remain, and the next run would fail."""
    ctypes.pythonapi.Py_Exit(ctypes.c_int(status))


def _rank(
    rank: int, world: int, per_node: int, port: int, log: Path, target: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Run `target` with torchrun's environment, with a store that outlives the ranks and with its output in a file.

    Runs the registered exit handlers, which children of multiprocessing skip: a failed rank notifies the others there.
    """
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
