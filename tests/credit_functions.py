"""Credit functions that tests name with --credit.fn."""

from __future__ import annotations

from capo_fast.credit.groups import StepCredit, Suffix, TokenCredit, in_groups, rollouts_of


def by_level(groups, *, level, config, unknown=7):
    """Step credit: the `level` column of the row on every step. Also takes settings."""
    assert unknown == 7 and config.credit.fn
    return StepCredit(
        [
            [[share] * len(sample.rollout.steps.texts) for sample in group.samples]
            for group, share in zip(groups, level, strict=True)
        ]
    )


def rising(groups):
    """Token credit of 0, except for the last two tokens, whose credits cancel out."""
    rows = [_rising(len(sample.rollout.token_ids)) for _, sample in rollouts_of(groups)]
    return TokenCredit(in_groups(groups, rows))


def _rising(length):
    return [0.0] * (length - 2) + [0.5, -0.5]


def returns_questions(groups):
    """Returns a generator, but is not a generator function."""
    return queries_twice(groups)


def queries_twice(groups):
    """The second list of questions depends on the answers to the first."""
    first = yield [Suffix((1,), (2,))]
    second = yield [Suffix((1,), (2, 3)), Suffix((9,), (len(first),))]
    return StepCredit([[[-sum(second[0]) / 10] * len(s.rollout.steps.texts) for s in g.samples] for g in groups])


def of_either_kind(groups):
    """Token credit without an advantage in the first sampling round of a step, step credit in the next."""
    rows = [[0.0] * len(sample.rollout.token_ids) for _, sample in rollouts_of(groups)]
    return TokenCredit(in_groups(groups, rows)) if groups[0].samples[0].rollout.group == 0 else by_steps(groups)


def by_steps(groups):
    return StepCredit([[[0.0] * len(sample.rollout.steps.texts) for sample in group.samples] for group in groups])
