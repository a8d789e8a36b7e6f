"""Credit by the policy's change of a token's log-prob when given the critique of its solution.

From "The Role of Feedback Alignment in Self-Distillation" (arXiv 2606.11173) and SDPO (arXiv 2601.20802).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import islice

from capo_fast.config.schema import Config
from capo_fast.credit.assign import credited_samples
from capo_fast.credit.estimators.outcome import verdicts
from capo_fast.credit.groups import Answers, Group, Suffix, TokenCredit, in_groups, rollouts_of
from capo_fast.records import Sample

CLIP = 1.0
"""Clip of a token's log-ratio, nats."""
FEEDBACK = "{problem}\n\nFeedback on an earlier solution of yours:\n{critique}"
"""The user's message with a critique."""

Chat = Callable[[str], tuple[int, ...]]
Ratios = Generator[list[Suffix], Answers, TokenCredit]


def critique_ratios(groups: Sequence[Group], *, config: Config, chat: Chat) -> Ratios:
    """`A = outcome advantage + P * clip(log p(token | problem, critique) - log p(token | problem), -1, 1)`.

    The sources' rule: the self-teacher is the policy with the critic's feedback in its context, and a token's credit is
    the log-ratio of teacher and policy. [us] It is added to the outcome advantage (by C and `credit.norm`; C = 0 leaves
    only the ratio) and clipped. The feedback is the first parsed critique, after the problem in the user's message.
    The policy's own prompt has the same form, the problem as one user's message, even if the data has several messages:
    only the critique differs. Without a critique, in a group with a failed critique, or without room in the engine, the
    ratio is 0.
    """
    shown = [(sample, _prompts(group, sample, chat)) for group, sample in rollouts_of(groups)]
    queries = [Suffix(before, sample.rollout.token_ids) for sample, pair in shown for before in pair]
    found = iter((yield queries))
    weight, plain = config.credit.process_weight, credited_samples(groups, verdicts(groups), config, 1)
    rows = []
    for (sample, pair), each in zip(shown, plain, strict=True):
        ratios = _ratios(sample, list(islice(found, len(pair))))
        rows.append([max(each.step_advantages, key=abs) + weight * ratio for ratio in ratios])
    return TokenCredit(in_groups(groups, rows))


def _prompts(group: Group, sample: Sample, chat: Chat) -> list[tuple[int, ...]]:
    """Prompts with the first parsed critique and without; none without such a critique, in an unjudged group, or for an
    empty response."""
    read = next((critique.text for critique in sample.critiques if not critique.abstained), None)
    if read is None or group.unjudged or not sample.rollout.token_ids:
        return []
    problem = group.prompt.problem
    return [chat(text) for text in (FEEDBACK.format(problem=problem, critique=read), problem)]


def _ratios(sample: Sample, found: Sequence[tuple[float, ...] | None]) -> list[float]:
    """[L], clipped. found: log-probs with the critique and without, or empty."""
    known = [logprobs for logprobs in found if logprobs is not None]
    if len(known) < 2:
        return [0.0] * len(sample.rollout.token_ids)
    teacher, policy = known
    return [min(max(one - other, -CLIP), CLIP) for one, other in zip(teacher, policy, strict=True)]
