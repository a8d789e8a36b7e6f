"""What a credit estimator is given, may ask the engine for, and returns (`credit.fn`, docs/credit.md).

    groups -> estimator -> StepCredit: how wrong each step is; P, C and the norm make it advantages, in the loss kernel
                        -> TokenCredit: the advantage of each token, as it is

An estimator that needs the policy's probabilities or samples is a generator: it yields what it asks for, a list, and
gets the answers in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from capo_fast.errors import CapoError
from capo_fast.records import Prompt, Rollout, Sample


class CreditError(CapoError):
    """An estimator returned what is no credit of its groups."""


@dataclass(frozen=True)
class Group:
    """All rollouts of one prompt in a training step, with their verdicts, critiques and votes."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    @property
    def unjudged(self) -> bool:
        """Whether a rollout has no critique because none came (`Critique.failed`).

        Penalties for some of a group would favour those that the critic, when it went, had not read yet.
        """
        return any(s.critiques and all(critique.failed for critique in s.critiques) for s in self.samples)


def groups_of(samples: Sequence[Sample]) -> list[Group]:
    """The groups of samples that make up whole ones, one after another, in their order."""
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.rollout.group, []).append(sample)
    return [Group(members[0].rollout.prompt, tuple(members)) for members in found.values()]


def rollouts_of(groups: Sequence[Group]) -> list[tuple[Group, Sample]]:
    """Every sample with its group, in order."""
    return [(group, sample) for group in groups for sample in group.samples]


Numbers = Sequence[float]
ByRollout = Sequence[Numbers]
"""Of each rollout of a group, in the group's order."""


@dataclass(frozen=True)
class StepCredit:
    """How wrong each step is.

    >>> example = StepCredit(wrong=[[[0.0, 1.0, 0.0], [1.0, 0.0]]])  # one group of two rollouts
    """

    wrong: Sequence[ByRollout]
    """Of each group [S] per rollout, in [0, 1]: what P (`credit.process_weight`) multiplies."""
    outcomes: ByRollout | None = None
    """Of each group one number per rollout, in place of its verdict: what C (`credit.outcome_weight`) multiplies, with
    the other rewards; None: the verdicts."""


@dataclass(frozen=True)
class TokenCredit:
    """The advantage of each token, as the loss takes it: C, P and `credit.norm` have no part in it."""

    advantages: Sequence[ByRollout]
    """Of each group [L] per rollout."""


def in_groups(groups: Sequence[Group], rows: Iterable[Numbers]) -> list[list[Numbers]]:
    """One row per rollout, in the order of `rollouts_of`, as `StepCredit` and `TokenCredit` want them."""
    ordered = iter(rows)
    return [[next(ordered) for _ in group.samples] for group in groups]


def spread(rollout: Rollout, by_step: Sequence[float]) -> list[float]:
    """[L], each step's number [S] on all of its tokens."""
    return [by_step[k - 1] for k in accumulate(rollout.steps.starts)]


def step_ends(rollout: Rollout) -> list[int]:
    """[S], the tokens of the response up to the end of each step.

    >>> from capo_fast.records import StepSpans
    >>> steps = StepSpans((True, False, True), ("a", "b"))
    >>> step_ends(Rollout(Prompt("", "", "", None, ()), 0, 0, 0, (5, 6, 7), (0.0,) * 3, "", True, steps))
    [2, 3]
    """
    starts = [place for place, start in enumerate(rollout.steps.starts) if start]
    return [*starts[1:], len(rollout.token_ids)][: len(starts)]


def step_gains(values: Sequence[float | None]) -> list[float]:
    """[S], what each step adds to the value before it, of values [S + 1] before the first step and after each. None,
    where a value is not known, is the value before it.

    >>> step_gains([0.25, 0.5, None, 1.0])
    [0.25, 0.0, 0.5]
    """
    known = [value or 0.0 for value in values[:1]]
    for value in values[1:]:
        known.append(known[-1] if value is None else value)
    return [after - before for before, after in pairwise(known)]


# ---- what the engine, with the policy's weights, is asked for ----


@dataclass(frozen=True)
class Suffix:
    """Log-probs of tokens after others. Answered by a tuple of floats, natural log at temperature 1, one a token of
    `tokens`; None where `engine.max_model_len` has no room for both."""

    before: tuple[int, ...]
    """At least one token."""
    tokens: tuple[int, ...]
    """At least one token."""


@dataclass(frozen=True)
class Continuation:
    """A response sampled to its end, as a rollout is, and judged by `reward.fn`. Answered by its verdict in [0, 1];
    None where the check timed out, and where the response has `rollout.max_tokens` already."""

    prompt: Prompt = field(hash=False)
    response: tuple[int, ...]
    """The part that is there."""
    sample: int
    """Of several of the same response, which one: its seed is made of it."""


Asked = Suffix | Continuation
Answers = Sequence[Any]
"""To each question in order: as `Suffix` and `Continuation` say."""
