"""Shards of the tiny world: rollouts of the shipped model through vLLM, and every estimator's credit of them.

All arms see the same rollouts. A shard is a file; one that is there is not made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.credit.arms import ARMS
from bench.credit.crediting import Bench, credited, open_bench, write_shard
from capo_fast.config import load_config
from capo_fast.config.schema import Config
from capo_fast.loaders import load_prompts
from capo_fast.records import Sample
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream
from capo_fast.tiny.task import oracle_critique

GROUPS, N = 16, 8
"""Of a shard."""


def shard_path(out: Path, seed: int, part: int) -> Path:
    return out / "world" / f"{seed}-{part}.json"


def make_shards(out: Path, seed: int, count: int) -> None:
    """Those that are not there, on one engine."""
    missing = {part: path for part in range(count) if not (path := shard_path(out, seed, part)).exists()}
    if not missing:
        return
    with open_bench(world_config({}, seed)) as bench:
        for part, path in missing.items():
            samples = sampled(bench, seed, part)
            arms = arms_of(bench, samples, seed)
            write_shard(path, {"seed": seed, "part": part, **rollouts_of(samples), "arms": arms})
            print(path, flush=True)


def world_config(settings: Mapping[str, Any], seed: int) -> Config:
    """The embedded default with an arm's settings."""
    words = {"seed": seed, "rollout.n": N, "rollout.prompts": GROUPS, "reward.timeout_s": 60, **settings}
    return load_config([f"--{key}={value}" for key, value in words.items()])


def arms_of(bench: Bench, samples: list[Sample], seed: int) -> dict[str, Any]:
    return {name: credited(bench, world_config(arm.settings, seed), samples, arm.by_rule) for name, arm in ARMS.items()}


def rollouts_of(samples: list[Sample]) -> dict[str, Any]:
    """Of each rollout its verdict and the truth about its steps: 1 is wrong."""
    labels = []
    for sample in samples:
        steps = sample.rollout.steps.texts
        wrong = oracle_critique(sample.rollout.prompt.problem, steps)
        labels.append([int(k in wrong) for k in range(len(steps))])
    return {"outcomes": [sample.outcome for sample in samples], "labels": labels}


def sampled(bench: Bench, seed: int, part: int) -> list[Sample]:
    """The rollouts of one training step, of the prompts at its place in the data, with their verdicts."""
    config = world_config({"algorithm": "grpo"}, seed)
    problems = load_prompts(config, bench.tokenizer)
    prompts = dict(enumerate(problems.take(part * GROUPS, GROUPS)[0]))
    members = [(group, sample) for group in prompts for sample in range(N)]
    stream, builder = Stream(bench.engine, bench.engine), RequestBuilder(bench.tokenizer, "", config)
    generation = SamplingRound(stream, bench.rewards, builder, prompts, members, step=part + 1, version=0)
    generation.finish_rollouts()
    return sorted(generation.samples(), key=lambda each: (each.rollout.group, each.rollout.sample))
