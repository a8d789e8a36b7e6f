"""Held-out problems -> pass@1, through the engine that trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from capo_fast.config import Config
from capo_fast.credit.verify import VerifierPool
from capo_fast.engine.base import Engine, run_requests
from capo_fast.records import Prompt, Request
from capo_fast.runtime import gather
from capo_fast.sampling import request_seed


@dataclass(frozen=True)
class PassRate:
    """Mean over problems of the share of their samples that are right."""

    rate: float
    stderr: float
    problems: int
    timeouts: int
    """Answers whose check timed out; they are left out of the rate."""


def evaluate(
    engine: Engine, pool: VerifierPool, prompts: Sequence[Prompt], config: Config, rank: int, world: int
) -> PassRate:
    """pass@1 of the policy that the engine holds; the same seeds each time. A collective on all ranks."""
    mine = {f"eval-{i}-{k}": (i, k) for i in range(rank, len(prompts), world) for k in range(config.eval.n)}
    answers = run_requests(engine, [_request(name, prompts[i], config) for name, (i, _) in mine.items()])
    verdicts = pool.check([(answers[name].text, prompts[i].answer) for name, (i, _) in mine.items()])
    by_problem: dict[int, list[float]] = {}
    checked = gather([(i, verdict) for (i, _), verdict in zip(mine.values(), verdicts, strict=True)])
    for i, verdict in checked:
        if verdict is not None:
            by_problem.setdefault(i, []).append(float(verdict))
    rates = [sum(by_problem[i]) / len(by_problem[i]) for i in sorted(by_problem)]
    return _pass_rate(rates, timeouts=sum(verdict is None for _, verdict in checked))


def _request(name: str, prompt: Prompt, config: Config) -> Request:
    return Request(
        id=name,
        prompt_ids=prompt.token_ids,
        seed=request_seed(config.seed, name, prompt.id),
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        top_k=-1,
        max_tokens=config.rollout.max_tokens,
    )


def _pass_rate(rates: Sequence[float], timeouts: int) -> PassRate:
    count = len(rates)
    mean = sum(rates) / count if count else math.nan
    variance = sum((rate - mean) ** 2 for rate in rates) / (count - 1) if count > 1 else math.nan
    return PassRate(mean, math.sqrt(variance / count) if count else math.nan, count, timeouts)
