"""Inputs of a credit estimator, its queries to the engine, and its results (`credit.fn`, docs/credit.md).

    groups -> estimator -> StepCredit: how wrong each step is; the loss kernel applies P, C and the norm
                        -> TokenCredit: the advantage of each token, used unchanged

An estimator that needs the policy's probabilities or samples is a generator: it yields a list of queries and receives
the answers in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from capo_fast.errors import CapoError
from capo_fast.records import Prompt, Rollout, Sample


class CreditError(CapoError):
    """An estimator returned no valid credit of its groups."""


@dataclass(frozen=True)
class Group:
    """All rollouts of one prompt in a training step, with their verdicts, critiques and votes."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    @property
    def unjudged(self) -> bool:
        """True if all critiques of a rollout failed (`Critique.failed`).

        Penalties for some of a group would favour those whose critiques had not arrived when the critic failed.
        """
        return any(s.critiques and all(critique.failed for critique in s.critiques) for s in self.samples)


def groups_of(samples: Sequence[Sample]) -> list[Group]:
    """The groups of samples that form consecutive whole groups, in order."""
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.rollout.group, []).append(sample)
    return [Group(members[0].rollout.prompt, tuple(members)) for members in found.values()]


def rollouts_of(groups: Sequence[Group]) -> list[tuple[Group, Sample]]:
    """Every sample with its group, in order."""
    return [(group, sample) for group in groups for sample in group.samples]


Numbers = Sequence[float]
ByRollout = Sequence[Numbers]
"""Numbers per rollout of a group, in the group's order."""


@dataclass(frozen=True)
class StepCredit:
    """How wrong each step is.

    >>> example = StepCredit(wrong=[[[0.0, 1.0, 0.0], [1.0, 0.0]]])  # one group of two rollouts
    """

    wrong: Sequence[ByRollout]
    """Per group [S] per rollout, in [0, 1]: the factor of P (`credit.process_weight`)."""
    outcomes: ByRollout | None = None
    """Per group one number per rollout, in place of its verdict: the factor of C (`credit.outcome_weight`), with the
    other rewards; None: the verdicts."""


@dataclass(frozen=True)
class TokenCredit:
    """The advantage of each token in the loss: C, P and `credit.norm` are not applied."""

    advantages: Sequence[ByRollout]
    """Per group [L] per rollout."""


def in_groups(groups: Sequence[Group], rows: Iterable[Numbers]) -> list[list[Numbers]]:
    """One row per rollout, in the order of `rollouts_of`, grouped for `StepCredit` and `TokenCredit`."""
    ordered = iter(rows)
    return [[next(ordered) for _ in group.samples] for group in groups]


def spread(rollout: Rollout, by_step: Sequence[float]) -> list[float]:
    """[L], each step's number [S] on all of its tokens."""
    return [by_step[k - 1] for k in accumulate(rollout.steps.starts)]


def step_ends(rollout: Rollout) -> list[int]:
    """[S], the number of response tokens up to the end of each step.

    >>> from capo_fast.records import StepSpans
    >>> steps = StepSpans((True, False, True), ("a", "b"))
    >>> step_ends(Rollout(Prompt("", "", "", None, ()), 0, 0, 0, (5, 6, 7), (0.0,) * 3, "", True, steps))
    [2, 3]
    """
    starts = [place for place, start in enumerate(rollout.steps.starts) if start]
    return [*starts[1:], len(rollout.token_ids)][: len(starts)]


def step_gains(values: Sequence[float | None]) -> list[float]:
    """[S], the change of the value by each step; values [S + 1] are those before the first step and after each. An
    unknown value (None) equals the one before it.

    >>> step_gains([0.25, 0.5, None, 1.0])
    [0.25, 0.0, 0.5]
    """
    known = [value or 0.0 for value in values[:1]]
    for value in values[1:]:
        known.append(known[-1] if value is None else value)
    return [after - before for before, after in pairwise(known)]


# ---- queries to the engine, with the policy's weights ----


@dataclass(frozen=True)
class Suffix:
    """Log-probs of tokens after others. Answered by a tuple of floats, natural log at temperature 1, one per token of
    `tokens`; None if both do not fit `engine.max_model_len`."""

    before: tuple[int, ...]
    """At least one token."""
    tokens: tuple[int, ...]
    """At least one token."""


@dataclass(frozen=True)
class Continuation:
    """A response sampled to its end like a rollout, and judged by `reward.fn`. Answered by its verdict in [0, 1]; None
    if the check timed out, or if the response has `rollout.max_tokens` already."""

    prompt: Prompt = field(hash=False)
    response: tuple[int, ...]
    """The existing part of the response."""
    sample: int
    """Number among several continuations of the same response; its seed depends on it."""


Asked = Suffix | Continuation
Answers = Sequence[Any]
"""One answer per query, in order; see `Suffix` and `Continuation`."""
