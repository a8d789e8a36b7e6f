"""One arm of end_to_end.py, capo_fast's own loop: `python -m bench.trainer.end_to_end_capo STEPS FOLDER [settings]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.trainer.end_to_end import arm_config
from bench.trainer.timed import TimedTrainer
from capo_fast.build import build
from capo_fast.config.schema import Config
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.ranks import ranks


def run(config: Config) -> dict[str, Any]:
    with ranks() as device:
        trainer = TimedTrainer(**vars(build(config, device)))
        try:
            trainer.train()
        finally:
            trainer.close()
    lines = read_metrics(trainer.log.folder.path / "metrics.jsonl")
    return {
        "steps": [step_of(line, seconds[0]) for line, seconds in zip(lines, trainer.seconds, strict=True)],
        "loss": f"capo_kernels {trainer.learner.loss_kernel}",
        "threads": torch.get_num_threads(),
    }


def step_of(line: dict[str, Any], wall: float) -> dict[str, Any]:
    """A step from its line of metrics: what no stage holds is the rest."""
    stages = {key.removeprefix("time/"): value for key, value in line.items() if key.startswith("time/")}
    return {
        "seconds": stages | {"rest": wall - sum(stages.values())},
        "rollouts": line["rollouts"],
        "tokens": round(line["response_tokens_mean"] * line["rollouts"]),
        "pass_rate": line["pass_rate"],
    }


if __name__ == "__main__":
    steps, folder, *words = sys.argv[1:]
    found = run(arm_config(int(steps), Path(folder), words))
    Path(folder, "arm.json").write_text(json.dumps(found))
