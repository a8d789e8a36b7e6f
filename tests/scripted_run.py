"""The command `capo_fast.train` on the scripted engine, in a process of its own that can be told where to die.

    python scripted_run.py [--die PLACE:N[:SIGNAL]] [settings ...]

PLACE is `rollout`, `critique`, `load`, `learn`, `publish`, `published` or `recorded`; N says which time.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from scripted_world import MODEL, answer, score_with, small_arguments

import capo_fast.checkpoint as checkpoint
import capo_fast.train as train
from capo_fast.engine.scripted import ScriptedEngine


class Doom:
    """Kills this process, or has it interrupted, the N-th time that `place` is reached."""

    def __init__(self, order: str) -> None:
        self.place, _, rest = order.partition(":")
        number, _, name = rest.partition(":")
        self.left, self.signal = int(number or 0), getattr(signal, name or "SIGKILL")

    def reached(self, place: str) -> None:
        if place == self.place:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.signal)


class DoomedEngine(ScriptedEngine):
    def __init__(self, doom: Doom) -> None:
        super().__init__(answer, score_with(MODEL))
        self.doom = doom

    def step(self):
        completions = super().step()
        for completion in completions:
            self.doom.reached(completion.id.partition("-")[0])
        return completions

    def load(self, weights):
        super().load(weights)
        self.doom.reached("load")


def child(arguments: list[str], log: str, largest_file: int | None) -> None:
    """`main` in a process that was forked with everything imported; its output goes to a file."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.exit(main(arguments))


def main(arguments: list[str]) -> int:
    doom = Doom("")
    if arguments[0] == "--die":
        doom, arguments = Doom(arguments[1]), arguments[2:]
    publish, save, learn = os.replace, train.Trainer.save, train.Trainer.record

    def doomed_publish(source, target):
        if "step_" in str(target):
            doom.reached("publish")
        publish(source, target)
        if "step_" in str(target):
            doom.reached("published")

    def doomed_save(self):
        doom.reached("recorded")
        save(self)

    def doomed_record(self, *rest):
        doom.reached("learn")
        learn(self, *rest)

    checkpoint.os.replace = doomed_publish
    train.Trainer.save, train.Trainer.record = doomed_save, doomed_record
    original = train.run
    train.run = lambda config: original(config, DoomedEngine(doom))
    return train.main(small_arguments(*arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
