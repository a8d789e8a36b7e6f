"""The command `capo_fast.train` on the scripted engine, as one of several ranks, with a fault injected into one rank.

An order is FAULT:RANK: `error`, `bug`, `kill` or `hang` of RANK during its first rollouts, or `none`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import torch.distributed as dist
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, small_arguments

import capo_fast.train as train
from capo_fast.engine.base import EngineError
from capo_fast.runtime.failures import Deadline
from capo_fast.runtime.ranks import gather, ranks


class FaultyEngine(ScriptedEngine):
    def __init__(self, fault: str) -> None:
        super().__init__(answer, score_with(MODEL))
        self.fault, self.steps = fault, 0

    def step(self):
        self.steps += 1
        if self.steps == 6:
            inject(self.fault)
        return super().step()


def inject(fault: str) -> None:
    match fault:
        case "error":
            raise EngineError("the engine ran out of something")
        case "bug":
            raise KeyError("no such key")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)


def hang() -> None:
    """Rank 1 never leaves its stage; rank 0 waits in a collective with a far deadline."""
    threading.Thread(target=time.sleep, args=(600,), name="idle", daemon=True).start()
    with ranks():
        rank = dist.get_rank()
        deadline = Deadline(0.5 if rank == 1 else 600.0)
        gather([])  # both have started
        deadline.start("rollout")
        if rank == 1:
            inject("hang")
        gather([])


def main(order: str, *arguments: str) -> None:
    fault, _, rank = order.partition(":")
    engine = FaultyEngine(fault if os.environ["RANK"] == rank else "none")
    original = train.run
    train.run = lambda config: original(config, engine)
    sys.exit(train.main(small_arguments(*arguments)))
