"""One arm of end_to_end.py, capo_fast's own loop: `python -m bench.trainer.end_to_end_capo STEPS FOLDER [settings]`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.trainer.end_to_end import arm_config
from capo_fast.build import Parts, build
from capo_fast.config.schema import Config
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.ranks import ranks
from capo_fast.train import Trainer


class TimedTrainer(Trainer):
    """The loop as it is. A step's wall time ends where its records are written, before a checkpoint."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.began = 0.0
        self.walls: list[float] = []

    def step(self) -> None:
        self.began = time.perf_counter()
        super().step()

    def record(self, *args: Any) -> None:
        super().record(*args)
        self.walls.append(time.perf_counter() - self.began)


def run(config: Config) -> dict[str, Any]:
    with ranks() as device:
        parts = build(config, device)
        try:
            trainer = TimedTrainer(parts)
            trainer.train()
        finally:
            parts.close()
    lines = read_metrics(parts.folder / "metrics.jsonl")
    return {
        "steps": [step_of(line, wall) for line, wall in zip(lines, trainer.walls, strict=True)],
        "loss": f"capo_kernels {parts.learner.loss_kernel}",
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
