"""The process around a run: ranks, seeds, and signals that ask it to stop."""

from __future__ import annotations

import os
import random
import signal
import socket
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


class Interrupted(Exception):
    """SIGTERM or Ctrl-C reached a rank: the run saves its last finished step and ends."""


class StopSignal:
    """Turns SIGTERM and SIGINT into `Interrupted`, raised on all ranks at the same place."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True
        # A second Ctrl-C ends at once.
        signal.signal(number, signal.SIG_DFL)

    def check(self) -> None:
        """Raise Interrupted if any rank was asked to stop. A collective."""
        asked = torch.tensor(float(self._asked))
        dist.all_reduce(asked)
        if asked.item():
            raise Interrupted


def start_ranks() -> torch.device:
    """Join torchrun's process group, or be a group of one without it; returns this rank's device."""
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=timedelta(minutes=30))
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timedelta(minutes=30))
    return device


def gather(items: list[Any]) -> list[Any]:
    """The lists of all ranks, end to end. A collective."""
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def seed_everything(seed: int) -> None:
    """Global generators; the run's own draws take their seeds from `config.seed` directly."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
