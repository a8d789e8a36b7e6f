"""Savings of `rollout.carry` with long-tailed response lengths, at equal tokens.

    python -m bench.trainer.carry [--steps 8] [--rounds 3] [--json FILE]

The whole training loop (GRPO, the embedded model and data) runs on one in-process vLLM. Rollout lengths are drawn from
a log-normal, independent of the model's output: a few are many times as long as the rest. A rollout's length depends
only on its question and sample. All arms draw the same prompts, so they generate the same rollouts except those that
the last step leaves open. Arms take turns in every round. Ratios are per token.

    plain       every step waits for its longest rollout
    carry 14    2 of 16 groups may stay open
    carry 12    4 of 16, the default
    carry 8     8 of 16

Engine steps are exact and the same on every machine. Seconds depend on the machine: if an engine step costs about the
same for few and for many sequences, as on a GPU, they follow the engine steps.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from bench.evidence.oracle import KeptEngine
from bench.machine import about
from capo_fast.build import build
from capo_fast.config import load_config
from capo_fast.config.paths import resolve_model
from capo_fast.engine.vllm import VllmEngine
from capo_fast.loaders import start_engine
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import Completion, Request
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.ranks import ranks

MEDIAN, SIGMA, LONGEST = 24.0, 0.9, 200
"""Parameters of the log-normal; tokens."""
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "carry 14": {"rollout.carry": "true", "rollout.enough": 14},
    "carry 12": {"rollout.carry": "true", "rollout.enough": 12},
    "carry 8": {"rollout.carry": "true", "rollout.enough": 8},
}
SETTINGS = {
    "algorithm": "grpo",
    "rollout.max_tokens": LONGEST,
    "loss.is_mode": "truncate",
    "eval.path": "none",
    "checkpoint.every": 0,
    "run.keep_rollouts": "none",
    "resume": "never",
}


class LongTailed(KeptEngine):
    """vLLM whose rollouts end exactly at their drawn lengths."""

    def __init__(self, engine: VllmEngine, newline: int) -> None:
        super().__init__(engine)
        self.newline = newline
        self.steps = self.tokens = 0

    def add(self, request: Request) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        ids = list(request.prompt_ids)
        question = ids[: ids.index(self.newline) + 1]
        left = length_of(question, request.id.split("-")[3]) - (len(ids) - len(question))
        params = SamplingParams(
            temperature=1.0,
            seed=request.seed,
            max_tokens=left,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.engine._llm.llm_engine.add_request(request.id, TokensPrompt(prompt_token_ids=ids), params)

    def step(self) -> list[Completion]:
        self.steps += 1
        return self._counted(self.engine.step())

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        return self._counted(self.engine.stop(ids))

    def _counted(self, written: list[Completion]) -> list[Completion]:
        self.tokens += sum(completion.tokens for completion in written)
        return written


def length_of(question: Sequence[int], sample: str) -> int:
    """Tokens of a rollout.

    >>> length_of([5, 9, 5], "0") == length_of([5, 9, 5], "0") != length_of([5, 9, 5], "1")
    True
    """
    draw = Random(f"{question} {sample}").lognormvariate(math.log(MEDIAN), SIGMA)
    return min(LONGEST, max(4, round(draw)))


def run_arm(name: str, steps: int, engine: LongTailed, device: Any) -> dict[str, Any]:
    """One run of an arm; its sums over all steps."""
    before = engine.steps, engine.tokens
    with tempfile.TemporaryDirectory() as folder:
        words = SETTINGS | ARMS[name] | {"train.steps": steps, "run.dir": f"{folder}/run"}
        trainer = build(load_config([f"--{key}={value}" for key, value in words.items()]), device, engine)
        for step in range(1, steps + 1):
            trainer.step(step)
        trainer.close()
        lines = read_metrics(Path(folder, "run", "metrics.jsonl"))
    stages = ("sync", "rollout", "verify", "learn")
    return {
        "engine steps": engine.steps - before[0],
        "tokens": engine.tokens - before[1],
        "rollout s": sum(line["time/rollout"] for line in lines),
        "step s": sum(line[f"time/{stage}"] for line in lines for stage in stages),
        "groups per step": sum(line["rollouts"] for line in lines) / steps / trainer.log.config.rollout.n,
        "staleness": sum(line.get("rollout/staleness", 0.0) for line in lines) / steps,
        "finished stale": sum(line.get("rollout/finished_stale", 0) for line in lines),
    }


def measure(steps: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    config = load_config([f"--{key}={value}" for key, value in SETTINGS.items()])
    model = resolve_model(config.model.path)
    [newline] = load_tokenizer(model).encode("\n", add_special_tokens=False)
    with ranks() as device:
        engine = start_engine(model, config)
        for number in range(rounds):
            order = list(ARMS)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                found[name].append(run_arm(name, steps, LongTailed(engine, newline), device))
                print(f"round {number + 1} of {rounds}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
        engine.close()
    return found


def ratios(found: dict[str, list[dict[str, Any]]], name: str, what: str) -> list[float]:
    """Ratios to `plain` per token, one per round."""
    pairs = zip(found[name], found["plain"], strict=True)
    return [one[what] / one["tokens"] / (other[what] / other["tokens"]) for one, other in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found = measure(options.steps, options.rounds)
    for name, runs in found.items():
        figures = {key: round(median(run[key] for run in runs), 3) for key in runs[0]}
        of_plain = {what: median(ratios(found, name, what)) for what in ("engine steps", "rollout s", "step s")}
        print(f"{name}: {figures}; of plain by token: { ({key: round(value, 3) for key, value in of_plain.items()}) }")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about(1) | {"steps": options.steps, "rounds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
