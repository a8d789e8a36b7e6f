"""The learner's part of a training step on a real model: what it saves to leave out rollouts without a gradient, and to
pack a prompt once per group.

    python -m bench.trainer.learner --model FOLDER --data FILE [--live 1.0 0.5] [--rounds 2] [--set KEY=VALUE ...]
    python -m bench.trainer.learner --model FOLDER --data FILE --count [--responses 200] [--n 8 16]

The first times a step (loss, backward, optimizer) of GRPO in float32, on the first prompts of FILE with random
responses of `rollout.max_tokens` tokens, by the share of groups with a gradient and by arm; arms take turns:

    neither    all rollouts, each with its own copy of the prompt
    skip       only those with a gradient
    share      all rollouts, a prompt once per group
    both       what training does

The second counts the tokens that a learner computes with its own copy of the prompt for each response and with one per
group, over all prompts of FILE.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
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
from capo_fast.records import CreditedSample, Prompt, Rollout, Sample, StepSpans
from capo_fast.runtime.ranks import ranks

SETTINGS = (
    *("--algorithm=grpo", "--policy.dtype=float32", "--rollout.prompts=4", "--rollout.n=8", "--rollout.max_tokens=96"),
    *("--train.epochs=1", "--train.minibatches=1", "--train.micro_tokens=2048", "--engine.max_model_len=8192"),
)


def prompts_of(options: argparse.Namespace) -> tuple[Config, list[Prompt]]:
    """The configuration, and the prompts of a step or, to count, all."""
    own = [f"--model.path={options.model}", f"--data.path={options.data}"]
    config = load_config([*SETTINGS, *own, *(f"--{word}" for word in options.set)])
    problems = load_prompts(config, load_tokenizer(options.model))
    return config, problems.take(0, len(problems.prompts) if options.count else config.rollout.prompts)[0]


def sample_of(prompt: Prompt, group: int, i: int, tokens: int, vocab: int, live: bool) -> CreditedSample:
    """A random response. In a live group every other rollout is right, in the rest none is."""
    generator = torch.Generator().manual_seed(1000 * group + i)
    ids = tuple(torch.randint(vocab, (tokens,), generator=generator).tolist())
    steps = StepSpans((True, *[False] * (tokens - 1)), ("",))
    rollout = Rollout(prompt, group, i, 0, ids, (-1.0,) * tokens, "", True, steps)
    outcome = float(live and i % 2)
    stats, advantage = ((0.5, 1.0, 0.0, 1.0), outcome - 0.5) if live else ((0.0,) * 4, 0.0)
    return CreditedSample(Sample(rollout, outcome, (), (0.0,)), True, outcome, (0.0,), stats, (advantage,))


def of_arm(samples: Sequence[CreditedSample], arm: str) -> list[CreditedSample]:
    """What makes packing compute every rollout, or repeat every prompt."""
    if arm in ("neither", "share"):
        samples = [replace(each, step_advantages=(1.0,)) for each in samples]
    if arm in ("neither", "skip"):
        samples = [with_own_prompt(each) for each in samples]
    return list(samples)


def with_own_prompt(credited: CreditedSample) -> CreditedSample:
    """Its first token is another one in each rollout."""
    rollout = credited.rollout
    prompt = replace(rollout.prompt, token_ids=(rollout.sample, *rollout.prompt.token_ids[1:]))
    return replace(credited, sample=replace(credited.sample, rollout=replace(rollout, prompt=prompt)))


ARMS = ("neither", "skip", "share", "both")


def time_steps(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Seconds of a step by share of live groups and arm, after one step to warm up."""
    config, prompts = prompts_of(options)
    model = load_model(options.model, config.policy.attention).train()
    vocab = model.config.vocab_size
    learner = Learner(shard_policy(model, config.policy, init_device_mesh(device.type, (1,))), None, config)
    found: dict[tuple[float, str], list[float]] = {}
    batches = {}
    for share in options.live:
        samples = [
            sample_of(prompt, group, i, config.rollout.max_tokens, vocab, group < share * len(prompts))
            for group, prompt in enumerate(prompts)
            for i in range(config.rollout.n)
        ]
        batches |= {(share, arm): pack_update(of_arm(samples, arm), config, 0, 1) for arm in options.arms}
    learner.train_batch([list(batches.values())[-1]])
    for _ in range(options.rounds):
        for key, batch in batches.items():
            start = time.perf_counter()
            learner.train_batch([batch])
            found.setdefault(key, []).append(time.perf_counter() - start)
    return [
        {
            "live": share,
            "arm": arm,
            "tokens": sum(len(micro.input_ids) for micro in batches[share, arm]),
            "seconds": seconds,
        }
        for (share, arm), seconds in found.items()
    ]


def count_tokens(options: argparse.Namespace) -> str:
    """Tokens per response by rollouts per group: prompts repeated, prompts once, and the share that is saved."""
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
    parser.add_argument("--responses", type=int, default=200, help="mean tokens of a response, to count")
    parser.add_argument("--prompt", type=int, help="tokens of a prompt, to count; without it the mean of FILE's")
    parser.add_argument("--n", nargs="+", type=int, default=[8, 16], help="rollouts per group, to count")
    options = parser.parse_args()
    if options.count:
        print(count_tokens(options))
        return
    with ranks() as device:
        rows = time_steps(options, device)
    for row in rows:
        print(json.dumps(row), flush=True)
    cells = [[str(row["live"]), row["arm"], str(row["tokens"]), f"{median(row['seconds']):.1f}"] for row in rows]
    print(markdown_table(["live groups", "arm", "tokens", "seconds"], cells))


if __name__ == "__main__":
    main()
