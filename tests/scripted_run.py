"""The command `capo_fast.train` on the scripted engine, in a process that can be killed at a given point.

Arguments: [--die PLACE:N[:SIGNAL]] [settings ...]

PLACE is `rollout`, `critique`, `load`, `learn`, `publish`, `published` or `recorded`; the N-th time counts.
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


class SignalAt:
    """Sends this process a signal (default SIGKILL) the N-th time it reaches `place`."""

    def __init__(self, order: str) -> None:
        self.place, _, rest = order.partition(":")
        number, _, name = rest.partition(":")
        self.left, self.signal = int(number or 0), getattr(signal, name or "SIGKILL")

    def reached(self, place: str) -> None:
        if place == self.place:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.signal)


class TriggeredEngine(ScriptedEngine):
    def __init__(self, trigger: SignalAt) -> None:
        super().__init__(answer, score_with(MODEL))
        self.trigger = trigger

    def step(self):
        completions = super().step()
        for completion in completions:
            self.trigger.reached(completion.id.partition("-")[0])
        return completions

    def load(self, weights):
        super().load(weights)
        self.trigger.reached("load")


def child(arguments: list[str], log: Path, largest_file: int | None) -> None:
    output_to(log)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    main(arguments)


def main(arguments: list[str]) -> None:
    trigger = SignalAt("")
    if arguments[0] == "--die":
        trigger, arguments = SignalAt(arguments[1]), arguments[2:]
    publish, save, record = os.replace, RunLog.save, RunLog.record

    def triggered_publish(source, target):
        if "step_" in str(target):
            trigger.reached("publish")
        publish(source, target)
        if "step_" in str(target):
            trigger.reached("published")

    def triggered_save(self, learner):
        trigger.reached("recorded")
        save(self, learner)

    def triggered_record(self, *rest):
        trigger.reached("learn")
        record(self, *rest)

    checkpoint.os.replace = triggered_publish
    RunLog.save, RunLog.record = triggered_save, triggered_record
    original = train.run
    train.run = lambda config: original(config, TriggeredEngine(trigger))
    sys.exit(train.main(small_arguments(*arguments)))
