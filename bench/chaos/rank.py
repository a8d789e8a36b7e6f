"""Program of one rank of the job: `capo train`, with each stage recorded as it starts.

Arguments: FOLDER SETTINGS. FOLDER gets a file per rank with a line per stage: step, stage, seconds of the machine's
monotonic clock. `start` of step 0 begins when all ranks are connected, and lasts until the first stage.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from capo_fast.build import build
from capo_fast.command import run_training
from capo_fast.config import load_config
from capo_fast.runtime.job import this_job
from capo_fast.runtime.training import Trains, train_on_ranks

AFTER = ("eval", "checkpoint", "export")
"""Stages after the update of their step."""


def main(folder: Path, words: list[str]) -> int:
    config = load_config(words)

    def noted(device: torch.device) -> Trains:
        file = (folder / f"rank-{this_job().rank}").open("a", buffering=1)

        def note(step: int, stage: str) -> None:
            file.write(f"{step} {stage} {time.monotonic()}\n")

        note(0, "start")
        trainer = build(config, device)
        progress = trainer.log.progress
        trainer.log.stages.on_entry.append(lambda stage: note(progress.step + (stage not in AFTER), stage))
        return trainer

    return run_training(lambda: train_on_ranks(config.train.stage_timeout_s, noted, config.engine))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
