"""The command `capo_fast.train` on the scripted engine, as one of several ranks that can be told what befalls it.

    torchrun ... ranks_run.py FATE:RANK [settings ...]

FATE: `error`, `bug`, `kill` or `hang` befalls RANK in the middle of its first rollouts; `none` befalls nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from scripted_world import MODEL, answer, score_with, small_arguments

import capo_fast.train as train
from capo_fast.engine.base import EngineError
from capo_fast.engine.scripted import ScriptedEngine
from capo_fast.failures import Deadline
from capo_fast.runtime import gather, ranks


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


def child(rank: int, port: int, log: str, arguments: tuple[str, ...]) -> None:
    """`main` in a process that was forked with everything imported."""
    as_torchrun_does(rank, port, log)
    sys.exit(main(*arguments))


def hanging_child(rank: int, port: int, log: str, arguments: tuple[str, ...]) -> None:
    """A stage that rank 1 never ends, while rank 0 waits in a collective; its own deadline is far."""
    as_torchrun_does(rank, port, log)
    threading.Thread(target=time.sleep, args=(600,), name="idle", daemon=True).start()
    with ranks():
        deadline = Deadline(3.0 if rank == 1 else 600.0)
        deadline.start("rollout")
        engine = FatedEngine("hang" if rank == 1 else "none")
        for _ in range(8):
            engine.step()
        gather([])


def as_torchrun_does(rank: int, port: int, log: str) -> None:
    """Its environment, with a store that outlives the ranks; output to a file."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": "0"}
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)


def main(order: str, *arguments: str) -> int:
    fate, _, rank = order.partition(":")
    engine = FatedEngine(fate if os.environ["RANK"] == rank else "none")
    original = train.run
    train.run = lambda config: original(config, engine)
    return train.main(small_arguments(*arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
