"""The command `capo_fast.train` on the scripted engine, as one of several ranks that can be told what befalls it.

    torchrun ... ranks_run.py FATE:RANK [settings ...]

FATE: `error`, `bug`, `kill` or `hang` befalls RANK in the middle of its first rollouts; `none` befalls nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from scripted_world import MODEL, answer, score_with, small_arguments

import capo_fast.train as train
from capo_fast.engine.base import EngineError
from capo_fast.engine.scripted import ScriptedEngine


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


def main(order: str, *arguments: str) -> int:
    fate, _, rank = order.partition(":")
    engine = FatedEngine(fate if os.environ["RANK"] == rank else "none")
    original = train.run
    train.run = lambda config: original(config, engine)
    return train.main(small_arguments(*arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
