"""The command `capo_fast.train` on the scripted engine, in a process of its own that can be told where to die.

Arguments: [--die PLACE:N[:SIGNAL]] [settings ...]

PLACE is `rollout`, `critique`, `load`, `learn`, `publish`, `published` or `recorded`; N says which time.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from forked import output_to
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, small_arguments

import capo_fast.policy.checkpoint as checkpoint
import capo_fast.train as train
from capo_fast.runlog.log import RunLog


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


def child(arguments: list[str], log: Path, largest_file: int | None) -> None:
    output_to(log)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    main(arguments)


def main(arguments: list[str]) -> None:
    doom = Doom("")
    if arguments[0] == "--die":
        doom, arguments = Doom(arguments[1]), arguments[2:]
    publish, save, record = os.replace, RunLog.save, RunLog.record

    def doomed_publish(source, target):
        if "step_" in str(target):
            doom.reached("publish")
        publish(source, target)
        if "step_" in str(target):
            doom.reached("published")

    def doomed_save(self, learner):
        doom.reached("recorded")
        save(self, learner)

    def doomed_record(self, *rest):
        doom.reached("learn")
        record(self, *rest)

    checkpoint.os.replace = doomed_publish
    RunLog.save, RunLog.record = doomed_save, doomed_record
    original = train.run
    train.run = lambda config: original(config, DoomedEngine(doom))
    sys.exit(train.main(small_arguments(*arguments)))
