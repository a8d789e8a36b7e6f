"""The process of one arm of bench.evidence: one engine, and the runs of all seeds one after the other.

Each run writes `figures.json` to its folder when it is complete; the files of an incomplete run are moved aside.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.evidence.arms import ARMS, Plan, arm_config, base_folder, run_folder
from bench.evidence.oracle import KeptEngine, OracleCritic, tiny_oracle
from bench.machine import about
from bench.trainer.timed import TimedTrainer
from capo_fast.build import build
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.loaders import start_engine
from capo_fast.pretrained import load_tokenizer
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.files import replacing
from capo_fast.runtime.ranks import ranks
from capo_fast.tiny.pretrain import STEPS, make
from capo_fast.tiny.task import oracle_critique

FIGURES = "figures.json"
STAGES = ("sync", "rollout", "critique", "verify", "learn")
Rule = Callable[[str, Sequence[str]], frozenset[int]]
"""A problem and a solution's steps -> its wrong steps."""


def missing_seeds(name: str, seeds: int, runs: Path) -> list[int]:
    return [seed for seed in range(seeds) if not (run_folder(runs, name, seed) / FIGURES).exists()]


def run_arm(name: str, seeds: Sequence[int], plan: Plan, runs: Path) -> None:
    """Run all seeds of an arm, one after the other, on one engine."""
    config = arm_config(name, 0, plan, runs)
    model, noise = resolve_model(config.model.path), ARMS[name].noise
    with ranks() as device:
        engine = start_engine(model, config)
        try:
            kept = KeptEngine(engine)
            if noise is not None:
                kept = OracleCritic(engine, tiny_oracle(load_tokenizer(model), noise))
            for seed in seeds:
                config = arm_config(name, seed, plan, runs)
                found = run_seed(config, device, kept, oracle_critique)
                write_figures(run_folder(runs, name, seed) / FIGURES, found)
        finally:
            engine.close()


def run_seed(config: Config, device: torch.device, engine: KeptEngine, rule: Rule) -> dict[str, Any]:
    """Run one seed; returns its figures. Weights are deleted."""
    trainer = TimedTrainer(**vars(build(config, device, engine)))
    try:
        trainer.train()
    finally:
        trainer.close()
    folder, evaluations = trainer.log.folder.path, trainer.log.progress.evaluations
    found = run_figures(folder, evaluations, np.array(trainer.seconds), rule) | {"about": about(1)}
    for weights in ("checkpoints", "model", *(["adapter"] if config.lora.rank else [])):
        shutil.rmtree(folder / weights)
    return found


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(figures).encode())


def run_figures(
    folder: Path, evaluations: Mapping[str, Mapping[str, float]], seconds: np.ndarray, rule: Rule
) -> dict[str, Any]:
    """Figures of a run for the report; all lists except the curve have one entry per step. `cpu_all` includes the
    processes that the run started, such as verifier workers."""
    lines = read_metrics(folder / "metrics.jsonl")
    drawn = list(accumulate((line["rollouts"] for line in lines), initial=0))
    return {
        "rollouts": drawn[1:],
        "curve": [[drawn[int(step)], rate["rate"]] for step, rate in evaluations.items()],
        "wall": [round(value, 3) for value in seconds[:, 0]],
        "cpu": [round(value, 3) for value in seconds[:, 1]],
        "cpu_all": [round(value, 3) for value in seconds[:, 2]],
        "stages": {stage: round(sum(line.get(f"time/{stage}", 0.0) for line in lines), 2) for stage in STAGES},
        "timeouts": sum(each["timeouts"] for each in evaluations.values())
        + sum(line["verify/timeouts"] for line in lines),
        "pass_rate": [line["pass_rate"] for line in lines],
        "critiques": [line["critic/asked"] for line in lines],
        "critique_tokens": [line["critic/tokens"] for line in lines],
        "critique_read": [line["critic/prompt_tokens"] - line["critic/cached_tokens"] for line in lines],
        "profile_tokens": [line.get("critic/profile_tokens", 0) for line in lines],
        "abstained": [line["critic/abstained"] for line in lines],
        "response_tokens": [line["response_tokens_mean"] for line in lines],
        "by_rule": [rule_counts(step_rollouts(folder, line["step"]), rule) for line in lines],
    }


def step_rollouts(folder: Path, step: int) -> list[dict[str, Any]]:
    with gzip.open(folder / "rollouts" / f"{step:06d}.jsonl.gz") as file:
        return [json.loads(line) for line in file]


def rule_counts(rows: Iterable[Mapping[str, Any]], rule: Rule) -> dict[str, int]:
    """Counts by a rule over a step's rollouts and the votes on their steps (a vote of 1/2 or more counts as wrong).

    >>> row = {"problem": "9*2", "steps": ["9*2=7", "A:8"], "outcome": 1.0, "votes": [1.0, 0.0], "critiques": [{}]}
    >>> rule_counts([row], oracle_critique)
    {'right': 1, 'right_unsound': 1, 'judged_wrong': 2, 'named': 1, 'named_wrong': 1}
    """
    counts = Counter(right=0, right_unsound=0, judged_wrong=0, named=0, named_wrong=0)
    for row in rows:
        wrong = rule(row["problem"], row["steps"])
        named = {k for k, vote in enumerate(row["votes"]) if vote >= 0.5}
        right = row["outcome"] == 1
        counts.update(right=right, right_unsound=right and bool(wrong))
        counts.update(
            judged_wrong=len(wrong) if row["critiques"] else 0, named=len(named), named_wrong=len(named & wrong)
        )
    return dict(counts)


def make_base(world: int, runs: Path) -> None:
    """Pretrain the base of another world, unless it exists."""
    folder = base_folder(runs, world)
    if folder.exists():
        return
    torch.set_num_threads(1)  # the order of sums, and so the bytes of the weights, depend on the thread count
    partial = folder.with_name(f".{folder.name}.tmp")
    make(partial, STEPS, world)
    os.replace(partial, folder)
