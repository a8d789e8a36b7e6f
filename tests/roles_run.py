"""The command `capo_fast.train` on two ranks. One has only the scripted engine, which logs its requests.

Arguments: NOTES [--die PLACE:N[:SIGNAL] | --fail PLACE:N] [settings ...], as in scripted_run.py, but the fault is in
the rank with the engine. NOTES gets one line per step whose rollouts are requested from the engine.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from scripted_run import SignalAt, TriggeredEngine
from scripted_world import small_arguments

import capo_fast.train as train
from capo_fast.engine.base import EngineError
from capo_fast.engine.checksum import checksum

SETTINGS = ["--engine.ranks", "1", "--loss.is_mode", "truncate", "--rollout.top_p", "1"]


class Failure(SignalAt):
    """Raises an EngineError instead of sending a signal."""

    def reached(self, place: str) -> None:
        self.left -= place == self.place
        if place == self.place and self.left == 0:
            raise EngineError("the engine ran out of something")


class NotedEngine(TriggeredEngine):
    """Writes the checksum of its weights to a file at the first rollout request of each step."""

    def __init__(self, trigger: SignalAt, notes: Path) -> None:
        super().__init__(trigger)
        self._notes, self._steps = notes, set[str]()

    def add(self, request):
        super().add(request)
        kind, _, rest = request.id.partition("-")
        step = rest.partition("-")[0]
        if kind == "rollout" and step not in self._steps:
            self._steps.add(step)
            with self._notes.open("a") as file:
                weights_sum = sum(checksum(weight) for weight in self.weights.values())
                file.write(json.dumps({"step": int(step), "weights_sum": weights_sum}) + "\n")


def main(notes: Path, arguments: list[str]) -> None:
    trigger = SignalAt("")
    if arguments[0] in (kinds := {"--die": SignalAt, "--fail": Failure}):
        trigger, arguments = kinds[arguments[0]](arguments[1] if os.environ["RANK"] == "1" else ""), arguments[2:]
    original = train.run
    train.run = lambda config: original(config, NotedEngine(trigger, notes))
    sys.exit(train.main(small_arguments(*SETTINGS, *arguments)))
