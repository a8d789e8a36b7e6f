"""The command `capo_fast.train` on two ranks, one of which only holds the scripted engine, and what it was asked when.

Arguments: NOTES [--die PLACE:N[:SIGNAL] | --fail PLACE:N] [settings ...]: as of scripted_run.py, but the order befalls
the rank with the engine. NOTES gets a line for each step whose rollouts the engine is asked for.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from scripted_run import Doom, DoomedEngine
from scripted_world import small_arguments

import capo_fast.train as train
from capo_fast.engine.base import EngineError
from capo_fast.engine.checksum import checksum

SETTINGS = ["--engine.ranks", "1", "--loss.is_mode", "truncate", "--rollout.top_p", "1"]


class Failure(Doom):
    """Raises an error of the engine in place of a signal."""

    def reached(self, place: str) -> None:
        self.left -= place == self.place
        if place == self.place and self.left == 0:
            raise EngineError("the engine ran out of something")


class NotedEngine(DoomedEngine):
    """Writes to a file which weights it holds when it is first asked for a step's rollouts."""

    def __init__(self, doom: Doom, notes: Path) -> None:
        super().__init__(doom)
        self._notes, self._steps = notes, set[str]()

    def add(self, request):
        super().add(request)
        kind, _, rest = request.id.partition("-")
        step = rest.partition("-")[0]
        if kind == "rollout" and step not in self._steps:
            self._steps.add(step)
            with self._notes.open("a") as file:
                held = sum(checksum(weight) for weight in self.weights.values())
                file.write(json.dumps({"step": int(step), "held": held}) + "\n")


def main(notes: Path, arguments: list[str]) -> None:
    doom = Doom("")
    if arguments[0] in (kinds := {"--die": Doom, "--fail": Failure}):
        doom, arguments = kinds[arguments[0]](arguments[1] if os.environ["RANK"] == "1" else ""), arguments[2:]
    original = train.run
    train.run = lambda config: original(config, NotedEngine(doom, notes))
    sys.exit(train.main(small_arguments(*SETTINGS, *arguments)))
