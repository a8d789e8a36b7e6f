"""The learner's part of a training step on a real model: the time saved by leaving out rollouts without a gradient, and
by packing a prompt once per group.

    python -m bench.trainer.learner --model FOLDER --data FILE [--live 1.0 0.5] [--rounds 2] [--set KEY=VALUE ...]
    python -m bench.trainer.learner --model FOLDER --data FILE --count [--responses 200] [--n 8 16]

The first command times a step (loss, backward, optimizer) of GRPO in float32, by the share of groups with a gradient
and by arm. It uses the first prompts of FILE with random responses of `rollout.max_tokens` tokens. Arms take turns:

    neither    all rollouts, each with its own copy of the prompt
    skip       only rollouts with a gradient
    share      all rollouts, a prompt once per group
    both       as in training

The second command counts the tokens that a learner computes with a copy of the prompt per response and with one per
group, over all prompts of FILE.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from capo_fast.config import load_config
from capo_fast.config.schema import Config
from capo_fast.loaders import load_prompts
from capo_fast.markdown import markdown_table
from capo_fast.policy.batch import pack_update
from capo_fast.policy.learner import Learner
from capo_fast.policy.model import load_model, shard_policy
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import CreditedSample, PackedBatch, Prompt, Rollout, Sample, StepSpans
from capo_fast.runtime.ranks import ranks

SETTINGS = {
    "algorithm": "grpo",
    "policy.dtype": "float32",
    "rollout.prompts": "4",
    "rollout.n": "8",
    "rollout.max_tokens": "96",
    "train.epochs": "1",
    "train.minibatches": "1",
    "train.micro_tokens": "2048",
    "engine.max_model_len": "8192",
}


def prompts_of(options: argparse.Namespace) -> tuple[Config, list[Prompt]]:
    """The configuration, and the prompts of a step; all prompts with --count."""
    own = {"model.path": options.model, "data.path": options.data}
    settings = SETTINGS | own | dict(word.split("=", 1) for word in options.set)
    config = load_config([f"--{key}={value}" for key, value in settings.items()])
    problems = load_prompts(config, load_tokenizer(options.model))
    return config, problems.take(0, len(problems.prompts) if options.count else config.rollout.prompts)[0]


def sample_of(prompt: Prompt, group: int, i: int, tokens: int, vocab: int, live: bool) -> CreditedSample:
    """A random response. Every other rollout of a live group is right; those of other groups are all wrong."""
    generator = torch.Generator().manual_seed(1000 * group + i)
    ids = tuple(torch.randint(vocab, (tokens,), generator=generator).tolist())
    steps = StepSpans((True, *[False] * (tokens - 1)), ("",))
    rollout = Rollout(prompt, group, i, 0, ids, (-1.0,) * tokens, "", True, steps)
    outcome = float(live and i % 2)
    stats, advantage = ((0.5, 1.0, 0.0, 1.0), outcome - 0.5) if live else ((0.0,) * 4, 0.0)
    return CreditedSample(Sample(rollout, outcome, (), (0.0,)), True, outcome, (0.0,), stats, (advantage,))


def of_arm(samples: Sequence[CreditedSample], arm: str) -> list[CreditedSample]:
    """The samples, changed so that packing computes every rollout or repeats every prompt, depending on the arm."""
    if arm in ("neither", "share"):
        samples = [replace(each, step_advantages=(1.0,)) for each in samples]
    if arm in ("neither", "skip"):
        samples = [with_own_prompt(each) for each in samples]
    return list(samples)


def with_own_prompt(credited: CreditedSample) -> CreditedSample:
    """The rollout in a separate group, with a prompt whose first token is unique in its group."""
    rollout = credited.rollout
    prompt = replace(rollout.prompt, token_ids=(rollout.sample, *rollout.prompt.token_ids[1:]))
    own = replace(rollout, prompt=prompt, group=1000 * rollout.group + rollout.sample)
    return replace(credited, sample=replace(credited.sample, rollout=own))


ARMS = ("neither", "skip", "share", "both")


def batches_of(
    options: argparse.Namespace, config: Config, prompts: Sequence[Prompt], vocab: int
) -> dict[tuple[float, str], list[PackedBatch]]:
    """Micro-batches of a step by share of live groups and arm."""
    found: dict[tuple[float, str], list[PackedBatch]] = {}
    for share in options.live:
        samples = [
            sample_of(prompt, group, i, config.rollout.max_tokens, vocab, group < share * len(prompts))
            for group, prompt in enumerate(prompts)
            for i in range(config.rollout.n)
        ]
        found |= {(share, arm): pack_update(of_arm(samples, arm), config, 0, 1) for arm in options.arms}
    return found


def time_steps(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yields wall and CPU seconds of each step by share of live groups and arm, after a warm-up step."""
    config, prompts = prompts_of(options)
    model = load_model(options.model, config.policy.attention).train()
    batches = batches_of(options, config, prompts, model.config.vocab_size)
    learner = Learner(shard_policy(model, config.policy, init_device_mesh(device.type, (1,))), None, config)
    learner.train_batch([next(iter(batches.values()))])
    for _ in range(options.rounds):
        for (share, arm), batch in batches.items():
            start = time.perf_counter(), time.process_time()
            metrics = learner.train_batch([batch])
            seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
            yield {"live": share, "arm": arm, "tokens": metrics["learn/tokens"], "seconds": seconds, "cpu": cpu}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the rounds, and their ratio to `neither` if it was timed."""
    seconds: dict[tuple[float, str, int], list[float]] = defaultdict(list)
    for row in rows:
        seconds[row["live"], row["arm"], row["tokens"]].append(row["seconds"])
    whole = {live: median(each) for (live, arm, _), each in seconds.items() if arm == "neither"}
    cells = [
        [
            str(live),
            arm,
            str(tokens),
            f"{median(each):.3g}",
            f"{median(each) / whole[live]:.2f}" if live in whole else "-",
        ]
        for (live, arm, tokens), each in seconds.items()
    ]
    return markdown_table(["live groups", "arm", "tokens", "seconds", "ratio"], cells)


def count_tokens(options: argparse.Namespace) -> str:
    """Tokens per response by rollouts per group: prompts repeated, prompts once, and the saved share."""
    _, prompts = prompts_of(options)
    length = options.prompt or fmean(len(prompt.token_ids) for prompt in prompts)
    rows = []
    for n in options.n:
        repeated, once = length + options.responses - 1, length / n + options.responses - 1
        numbers = (n, length, options.responses, repeated, once)
        rows.append([*(f"{number:.0f}" for number in numbers), f"{1 - once / repeated:.0%}"])
    return markdown_table(["rollouts", "prompt", "response", "repeated", "once", "saved"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the policy")
    parser.add_argument("--data", required=True, help="file of problems")
    parser.add_argument("--live", nargs="+", type=float, default=[1.0, 0.5], help="shares of groups with a gradient")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the run")
    parser.add_argument("--count", action="store_true", help="count tokens, time nothing")
    parser.add_argument("--responses", type=int, default=200, help="for --count: mean tokens per response")
    parser.add_argument("--prompt", type=int, help="for --count: tokens per prompt (the mean of FILE)")
    parser.add_argument("--n", nargs="+", type=int, default=[8, 16], help="for --count: rollouts per group")
    options = parser.parse_args()
    if options.count:
        print(count_tokens(options))
        return
    rows = []
    with ranks() as device:
        for row in time_steps(options, device):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
