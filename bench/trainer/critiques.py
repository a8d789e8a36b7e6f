"""CPU milliseconds per critique of a single step (`critic.reads: step`) on the tiny world, by part.

    python -m bench.trainer.critiques [--groups 16] [--rounds 5]

built      outside the engine: prompts, tokens, seeds, keys of shared steps, and parsing of the answers
added      in the engine's `add`: vLLM's checks and the request's state
stepped    in the engine's `step`: the model, the sampler, vLLM's scheduler and its outputs

The rollouts are the tiny world's own solutions, eight per problem; the critic is the shipped one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Any

from bench.machine import about
from capo_fast.config import load_config
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import EngineConfig
from capo_fast.credit.steps import step_spans
from capo_fast.engine.vllm import VllmEngine
from capo_fast.loaders import load_critic_template
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import Completion, Prompt, Request, Rollout
from capo_fast.rollout.critiquing import Critiquing
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.stream import Stream
from capo_fast.runtime.ranks import ranks
from capo_fast.tiny.task import World, draw_question


class Timed(VllmEngine):
    """Records the CPU seconds in `add` and in `step`."""

    def __init__(self, path: str, config: EngineConfig) -> None:
        super().__init__(path, config)
        self.seconds = {"added": 0.0, "stepped": 0.0}

    def add(self, request: Request) -> None:
        started = time.process_time()
        super().add(request)
        self.seconds["added"] += time.process_time() - started

    def step(self) -> list[Completion]:
        started = time.process_time()
        completions = super().step()
        self.seconds["stepped"] += time.process_time() - started
        return completions


def rollouts_of(groups: int, n: int, tokenizer: Any) -> list[Rollout]:
    world, draw = World.from_seed(7), Random(0)
    prompts = [Prompt(str(i), draw_question(draw), "", None, ()) for i in range(groups)]
    return [
        written(world, prompt, group, sample, tokenizer) for group, prompt in enumerate(prompts) for sample in range(n)
    ]


def written(world: World, prompt: Prompt, group: int, sample: int, tokenizer: Any) -> Rollout:
    text = "\n\n".join(world.solution(Random(f"{group} {sample}"), prompt.problem))
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    return Rollout(prompt, group, sample, 1, ids, (0.0,) * len(ids), text, True, step_spans(ids, tokenizer))


def measured(engine: Timed, builder: RequestBuilder, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """CPU milliseconds per critique."""
    engine.forget_prefixes()
    engine.seconds.update(added=0.0, stepped=0.0)
    started, stream = time.process_time(), Stream(engine, engine)
    critiquing = Critiquing(stream, builder)
    for rollout in rollouts:
        critiquing.ask(rollout)
    while stream.critiques:
        for completion in stream.advance():
            critiquing.note(completion)
    for rollout in rollouts:
        critiquing.result(rollout)
    spent = dict(engine.seconds)
    spent["built"] = time.process_time() - started - sum(spent.values())
    return {name: 1000 * seconds / stream.traffic.critiques for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = load_config(["--algorithm", "capo-gated"])
    path = resolve_model(str(config.critic.path))
    tokenizer = load_tokenizer(path)
    builder = RequestBuilder(tokenizer, load_critic_template(config), config)
    with ranks():
        engine = Timed(path, config.engine)
        rollouts = rollouts_of(options.groups, 8, tokenizer)
        rounds = [measured(engine, builder, rollouts) for _ in range(options.rounds + 1)][1:]
        engine.close()
    found = {name: round(median(each[name] for each in rounds), 4) for name in ("built", "added", "stepped")}
    print(json.dumps({"about": about(1), "ms": found}, indent=1))


if __name__ == "__main__":
    main()
