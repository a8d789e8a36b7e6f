"""The command `capo_fast.train` on the scripted engine, as one of several ranks that can be told what befalls it.

An order is FATE:RANK: `error`, `bug`, `kill` or `hang` befalls RANK amid its first rollouts, `none` befalls nobody.
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


class FatedEngine(ScriptedEngine):
    def __init__(self, fate: str) -> None:
        super().__init__(answer, score_with(MODEL))
        self.fate, self.steps = fate, 0

    def step(self):
        self.steps += 1
        if self.steps == 6:
            befall(self.fate)
        return super().step()


def befall(fate: str) -> None:
    match fate:
        case "error":
            raise EngineError("the engine ran out of something")
        case "bug":
            raise KeyError("no such key")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)


def hang() -> None:
    """A stage that rank 1 never ends, while rank 0 waits in a collective; its own deadline is far."""
    threading.Thread(target=time.sleep, args=(600,), name="idle", daemon=True).start()
    with ranks():
        rank = dist.get_rank()
        deadline = Deadline(0.5 if rank == 1 else 600.0)
        gather([])  # both are here
        deadline.start("rollout")
        if rank == 1:
            befall("hang")
        gather([])


def main(order: str, *arguments: str) -> None:
    fate, _, rank = order.partition(":")
    engine = FatedEngine(fate if os.environ["RANK"] == rank else "none")
    original = train.run
    train.run = lambda config: original(config, engine)
    sys.exit(train.main(small_arguments(*arguments)))
