"""The reward functions of a run: `reward.fn`, which judges the answer, and those of `reward.also`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

from capo_fast.config.schema import RewardConfig
from capo_fast.verify import Item, RewardFunction, Verdict, VerifierPool

Verdicts = tuple[float | None, ...]
"""Values for one answer, in [0, 1]: of `reward.fn` and of each function of `reward.also`; None if it timed out."""


@dataclass(frozen=True)
class Check:
    """Answers being checked by all reward functions."""

    futures: tuple[Future[list[Verdict]], ...]

    def done(self) -> bool:
        return all(future.done() for future in self.futures)

    def result(self) -> list[Verdicts]:
        """Waits for the verdicts. Raises VerifierError."""
        return list(zip(*(map(_share, future.result()) for future in self.futures), strict=True))


@dataclass(frozen=True)
class Rewards:
    """Each function has its own workers, so that none waits for another."""

    pools: tuple[VerifierPool, ...]
    batch: bool = False
    """True if one of them takes lists: it gets all answers of a sampling round in one call."""

    @property
    def answer(self) -> VerifierPool:
        """The pool of `reward.fn`."""
        return self.pools[0]

    def submit(self, items: Sequence[Item]) -> Check:
        return Check(tuple(pool.submit(items) for pool in self.pools))

    def close(self) -> None:
        with ExitStack() as every_one:
            for pool in self.pools:
                every_one.callback(pool.close)


def open_rewards(config: RewardConfig, functions: Sequence[RewardFunction]) -> Rewards:
    """Pools for these functions; no worker is started yet."""
    return Rewards(
        tuple(answer_pool(config, function.name) for function in functions),
        batch=any(function.batch for function in functions),
    )


def answer_pool(config: RewardConfig, name: str) -> VerifierPool:
    """The workers of one function, by the settings."""
    return VerifierPool(config.workers, config.timeout_s, name, config.memory_limit, config.conventions)


def _share(verdict: Verdict) -> float | None:
    return None if verdict is None else float(verdict)
