"""One arm's credit of rollouts that are there: critiques and questions as in training, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench.evidence.runs import Rule
from bench.machine import about
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.engine.base import Engine
from capo_fast.loaders import load_credit_function, load_critic_template, load_reward_functions, start_engine
from capo_fast.pretrained import load_tokenizer
from capo_fast.pretrained.weights import weight_files
from capo_fast.records import CreditedSample, Critique, Rollout, Sample
from capo_fast.rollout.crediting import CreditCost, Crediting
from capo_fast.rollout.critiquing import Critiquing
from capo_fast.rollout.gating import Gate
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards, open_rewards
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.files import replacing
from capo_fast.runtime.ranks import ranks
from capo_fast.runtime.stages import cpu_seconds, descendants


@dataclass(frozen=True)
class Bench:
    """What all arms share."""

    engine: Engine
    rewards: Rewards
    tokenizer: Any


@contextmanager
def open_bench(config: Config) -> Iterator[Bench]:
    """The engine with the model's own weights, inside a process group of its own."""
    model = resolve_model(config.model.path)
    functions = load_reward_functions(config.reward)
    with ranks():
        engine = start_engine(model, config)
        rewards = open_rewards(config.reward, functions)
        try:
            yield Bench(engine, rewards, load_tokenizer(model))
        finally:
            rewards.close()
            engine.close()


def write_shard(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps({"about": about(1), **found}) + "\n").encode())


def credited(bench: Bench, config: Config, samples: Sequence[Sample], rule: Rule | None = None) -> dict[str, Any]:
    """The mean advantage of each step, and the cost: tokens, and CPU seconds, with the engine, verifier workers and the
    push of a critic of another model. rule: is the critic, for nothing.
    """
    builder = RequestBuilder(bench.tokenizer, load_critic_template(config) if config.has_critic else "", config)
    crediting = Crediting(config, load_credit_function(config), bench.engine, bench.rewards, builder)
    bench.engine.forget_prefixes()
    started = cpu_seconds(descendants())
    judge = partial(critiqued, bench.engine, builder) if rule is None else partial(judged_by_rule, rule)
    judged, traffic = judge(samples)
    found, cost = crediting.credit(judged, step=1)
    return {
        "advantages": [[float(f"{advantage:.5g}") for advantage in mean_advantages(each)] for each in found],
        "cpu_s": round(cpu_seconds(descendants()) - started, 3),
        **tokens_of(traffic, cost),
    }


def tokens_of(traffic: Traffic, cost: CreditCost) -> dict[str, int]:
    """Tokens read, those of them that were in the prefix cache, and tokens written."""
    return {
        "read": traffic.critique_prompt_tokens + traffic.profile_tokens + cost.tokens - cost.written_tokens,
        "cached": traffic.critique_cached_tokens + cost.cached_tokens,
        "written": traffic.critique_tokens + cost.written_tokens,
    }


def mean_advantages(credited: CreditedSample) -> list[float]:
    """[S], of each step's tokens."""
    by_token, starts = credited.token_advantages, credited.rollout.steps.starts
    if by_token is None:
        return list(credited.step_advantages)
    cuts = [*(place for place, start in enumerate(starts) if start), len(starts)]
    return [sum(by_token[first:last]) / (last - first) for first, last in pairwise(cuts)]


def judged_by_rule(rule: Rule, samples: Sequence[Sample]) -> tuple[list[Sample], Traffic]:
    return [with_true_votes(rule, each) for each in samples], Traffic()


def with_true_votes(rule: Rule, sample: Sample) -> Sample:
    steps = sample.rollout.steps.texts
    wrong = rule(sample.rollout.prompt.problem, steps)
    critique = Critique(abstained=False, wrong_steps=wrong, dropped=0)
    return replace(sample, critiques=(critique,), step_wrong=tuple(float(k in wrong) for k in range(len(steps))))


def critiqued(engine: Engine, builder: RequestBuilder, samples: Sequence[Sample]) -> tuple[list[Sample], Traffic]:
    """The samples with the critiques that one sampling round of training would ask for, and what these cost. Where the
    critic is another model (`critic.path`), its weights take the policy's place in the engine for them."""
    if not builder.config.has_critic:
        return list(samples), Traffic()
    asking, rollouts = Asking(engine, builder), [each.rollout for each in samples]
    outcomes = {(each.rollout.group, each.rollout.sample): each.outcome for each in samples}
    chosen = asking.gate.choose(rollouts, lambda: outcomes)
    with critic_held(engine, builder.config):
        asking.gate.ask(chosen, asking.ask, asking.finish)
        asking.finish()
    found = map(asking.critiquing.result, rollouts)
    judged = [replace(s, critiques=c, step_wrong=v) for s, (c, v) in zip(samples, found, strict=True)]
    return judged, asking.stream.traffic


class Asking:
    """The critiques of rollouts that are there: a sampling round's, without the rollouts."""

    def __init__(self, engine: Engine, builder: RequestBuilder) -> None:
        self.stream = Stream(engine, engine)
        self.critiquing = Critiquing(self.stream, builder)
        self.gate = Gate(self.stream, builder, self.critiquing, step=1, judges=True)

    def ask(self, rollouts: Sequence[Rollout]) -> None:
        for rollout in rollouts:
            self.critiquing.ask(rollout)

    def finish(self) -> None:
        while self.stream.critiques:
            for completion in self.stream.advance():
                self.critiquing.note(completion)


@contextmanager
def critic_held(engine: Engine, config: Config) -> Iterator[None]:
    """The engine has the weights of `critic.path`, where there are any, and the policy's again afterwards."""
    other = config.critic.path if config.swaps else None
    if other is not None:
        engine.load(weights_at(other))
    yield
    if other is not None:
        engine.load(weights_at(config.model.path))


def weights_at(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """All of a model's folder, by Hugging Face name."""
    for file in weight_files(Path(resolve_model(path)), path):
        yield from load_file(file).items()
