"""Shards of a world: rollouts of its model through vLLM, and every estimator's credit of them.

All arms see the same rollouts. A shard is a file; one that is there is not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.credit.crediting import Bench, credited, open_bench, write_shard
from bench.credit.worlds import N, World
from bench.evidence.runs import Rule
from bench.machine import about
from capo_fast.loaders import load_prompts
from capo_fast.records import Sample
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream


def make_shards(world: World, out: Path, seed: int, rollouts: int) -> None:
    """Those that are not there, on one engine."""
    parts = range(-(-rollouts // (world.groups * N)))
    missing = {part: path for part in parts if not (path := shard_path(world, out, seed, part)).exists()}
    if not missing:
        return
    rule, made = world.open(), about(1)  # of the code that was read at the start, also after a commit
    with open_bench(world.config({}, seed)) as bench:
        for part, path in missing.items():
            samples = sampled(world, bench, seed, part)
            arms = arms_of(world, bench, samples, seed, rule)
            found = {"seed": seed, "part": part, **rollouts_of(samples, rule), "arms": arms}
            write_shard(path, {"about": made, **found})
            print(path, flush=True)


def shard_path(world: World, out: Path, seed: int, part: int) -> Path:
    return out / world.folder / f"{seed}-{part}.json"


def arms_of(world: World, bench: Bench, samples: Sequence[Sample], seed: int, rule: Rule) -> dict[str, Any]:
    return {
        name: credited(bench, world.config(arm.settings, seed), samples, rule if arm.by_rule else None)
        for name, arm in world.arms.items()
    }


def rollouts_of(samples: Sequence[Sample], rule: Rule) -> dict[str, Any]:
    """Of each rollout its verdict and the truth about its steps: 1 is wrong."""
    labels = []
    for sample in samples:
        steps = sample.rollout.steps.texts
        wrong = rule(sample.rollout.prompt.problem, steps)
        labels.append([int(k in wrong) for k in range(len(steps))])
    return {"outcomes": [sample.outcome for sample in samples], "labels": labels}


def sampled(world: World, bench: Bench, seed: int, part: int) -> list[Sample]:
    """The rollouts of one training step, of the prompts at its place in the data, with their verdicts."""
    config = world.config({"algorithm": "grpo"}, seed)
    problems = load_prompts(config, bench.tokenizer)
    prompts = dict(enumerate(problems.take(part * world.groups, world.groups)[0]))
    members = [(group, sample) for group in prompts for sample in range(N)]
    stream, builder = Stream(bench.engine, bench.engine), RequestBuilder(bench.tokenizer, "", config)
    generation = SamplingRound(stream, bench.rewards, builder, prompts, members, step=part + 1, version=0)
    generation.finish_rollouts()
    return sorted(generation.samples(), key=lambda each: (each.rollout.group, each.rollout.sample))
