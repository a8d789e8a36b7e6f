"""Problems -> requests -> verdicts -> rates, shared by evaluation during training and `capo_fast.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capo_fast.config.schema import Config
from capo_fast.engine.base import Engine, run_requests
from capo_fast.records import Prompt, Request
from capo_fast.runtime.digest import seed_of
from capo_fast.runtime.ranks import EngineGroup, gather
from capo_fast.statistics import mean, variance
from capo_fast.verify import Verdict, VerifierPool
from capo_fast.verify.functions import is_right, item_of


@dataclass(frozen=True)
class PassRate:
    """Mean over problems of the fraction of right samples (`is_right`)."""

    rate: float
    stderr: float
    problems: int
    timeouts: int
    """Answers whose check timed out; left out of the rate."""
    reward: float | None = None
    """Mean over problems of the mean verdict, if a verdict is neither 0 nor 1."""


def evaluate(
    engine: Engine, pool: VerifierPool, prompts: Sequence[Prompt], config: Config, group: EngineGroup
) -> PassRate:
    """pass@1 of the policy in the engine; the same seeds each time. A collective on all ranks."""
    share, settings = range(group.index, len(prompts), group.count), config.eval
    mine = {f"eval-{i}-{k}": i for i in share for k in range(settings.n)}
    answers = run_requests(
        engine,
        [solution_request(name, prompts[i], config, settings.temperature, settings.top_p) for name, i in mine.items()],
    )
    read = [(i, answers[name]) for name, i in mine.items()] if group.is_first else []
    verdicts = pool.check([item_of(a.text, prompts[i], prompts[i].columns, a.finished) for i, a in read])
    return _pass_rate(gather([(i, verdict) for (i, _), verdict in zip(read, verdicts, strict=True)]))


def _pass_rate(checked: Sequence[tuple[int, Verdict]]) -> PassRate:
    known = [(i, float(verdict)) for i, verdict in checked if verdict is not None]
    rates = problem_means((i, float(is_right(verdict))) for i, verdict in known)
    error = math.sqrt(variance(rates) / len(rates)) if rates else math.nan
    shared = any(0 < verdict < 1 for _, verdict in known)
    reward = mean(problem_means(known)) if shared else None
    return PassRate(mean(rates), error, len(rates), len(checked) - len(known), reward)


def solution_request(
    name: str, prompt: Prompt, config: Config, temperature: float, top_p: float, top_k: int = -1
) -> Request:
    """The request for one solution, its seed derived from the configuration's, its name and the problem's id."""
    return Request(
        id=name,
        prompt_ids=prompt.token_ids,
        seed=seed_of(config.seed, name, prompt.id),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=config.rollout.max_tokens,
    )


def problem_means(values: Iterable[tuple[int, float]]) -> list[float]:
    """The mean value of each problem, in the problems' order."""
    by_problem: dict[int, list[float]] = {}
    for i, value in values:
        by_problem.setdefault(i, []).append(value)
    return [mean(by_problem[i]) for i in sorted(by_problem)]
