"""One arm of bench.end_to_end, capo_fast's own loop: `python -m bench.end_to_end.capo_arm FOLDER [--fixed] [settings]`.

fixed: every response has rollout.max_tokens tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.end_to_end.arms import arm_config
from bench.trainer.timed import TimedTrainer
from capo_fast.build import build
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.engine.vllm import VllmEngine
from capo_fast.records import Request
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.ranks import ranks


class FixedLengthEngine(VllmEngine):
    """No answer ends before its limit: the end-of-sequence token has probability 0 until then."""

    def sampling_params(self, request: Request) -> Any:
        params = super().sampling_params(request)
        params.min_tokens = params.max_tokens
        return params


def run(config: Config, fixed: bool) -> dict[str, Any]:
    with ranks() as device:
        engine = None
        if fixed:
            engine = FixedLengthEngine(resolve_model(config.model.path), config.engine, config.lora)
        trainer = TimedTrainer(**vars(build(config, device, engine)))
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
    """A step from its line of metrics; `rest` is the time outside all stages."""
    stages = {key.removeprefix("time/"): value for key, value in line.items() if key.startswith("time/")}
    return {
        "seconds": stages | {"rest": wall - sum(stages.values())},
        "rollouts": line["rollouts"],
        "tokens": round(line["response_tokens_mean"] * line["rollouts"]),
        "pass_rate": line["pass_rate"],
    }


if __name__ == "__main__":
    folder, *words = sys.argv[1:]
    fixed = "--fixed" in words
    found = run(arm_config(Path(folder), [word for word in words if word != "--fixed"]), fixed)
    Path(folder, "arm.json").write_text(json.dumps(found))
