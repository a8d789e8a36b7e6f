"""Monte-Carlo values of step ends (VinePPO, arXiv 2410.01679)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from statistics import fmean

from capo_fast.config.schema import Config
from capo_fast.credit.groups import (
    Answers,
    Continuation,
    Group,
    TokenCredit,
    in_groups,
    rollouts_of,
    spread,
    step_ends,
    step_gains,
)
from capo_fast.records import Sample

Values = Generator[list[Continuation], Answers, TokenCredit]


def value_gains(groups: Sequence[Group], *, config: Config) -> Values:
    """The advantage of a step's tokens is the value after the step minus the one before it.

    The source's rule: a value is the mean verdict of k continuations that the policy samples from there
    (`credit.continuations`), without a value model. [us] The group's own rollouts are the continuations of the prompt;
    after the last step the value is the verdict. Continuations without a verdict are left out; if none has one, the
    previous value is used. There is no division by a standard deviation.
    """
    count = config.credit.continuations
    queries = [
        Continuation(group.prompt, sample.rollout.token_ids[:end], k)
        for group, sample in rollouts_of(groups)
        for end in _inner_ends(sample)
        for k in range(count)
    ]
    found = iter((yield queries))
    rows = [_advantages(group, sample, found, count) for group, sample in rollouts_of(groups)]
    return TokenCredit(in_groups(groups, rows))


def _inner_ends(sample: Sample) -> list[int]:
    return step_ends(sample.rollout)[:-1]


def _advantages(group: Group, sample: Sample, found: Iterator[float | None], count: int) -> list[float]:
    """[L]. found: yields the verdicts of the sample's continuations."""
    inner = [_mean(list(islice(found, count))) for _ in _inner_ends(sample)]
    values = [_mean([each.outcome for each in group.samples]), *inner, sample.outcome]
    return spread(sample.rollout, step_gains(values))


def _mean(verdicts: Sequence[float | None]) -> float | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return fmean(known) if known else None
