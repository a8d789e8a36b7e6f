"""Probability of the reference answer at step ends (GRPO-VPS, arXiv 2604.20659).

The source's rule: the reference answer is appended at each step's end, and a step's value is its change of the policy's
probability of that answer. No critic and no continuation: one prefill per step end.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Any

from capo_fast.config.schema import Config
from capo_fast.credit.groups import Answers, Group, StepCredit, Suffix, in_groups, step_ends, step_gains
from capo_fast.records import Prompt, Rollout, Sample

Probabilities = Generator[list[Suffix], Answers, StepCredit]


def answer_gains(groups: Sequence[Group], *, config: Config, tokenizer: Any) -> Probabilities:
    """`wrong = (1 - gain) / 2` per step; the gain is the probability after the step minus the one before it.

    So P scales gains as it scales votes, and with a norm that subtracts a mean the constant 1/2 has no effect. [us]
    `credit.answer_lead` comes between the step's end and the answer. `credit.answer_tail` comes after the answer, which
    alone would include all answers that begin with it. The probability is the geometric mean over the tokens of answer
    and tail, for the most probable of several references. After the last step, which states an answer, the verdict
    replaces the probability. A step end without room in the engine has the probability of the one before.
    """
    answers = [answer_tokens(group.prompt, config, tokenizer) for group in groups]
    samples = [(each, known) for group, known in zip(groups, answers, strict=True) for each in group.samples]
    queries = [
        Suffix((*start, *lead), tokens)
        for sample, known in samples
        for start in starts_of(sample.rollout)
        for lead, tokens in known
    ]
    found = iter((yield queries))
    rows = [_wrong(sample, len(known), found) for sample, known in samples]
    return StepCredit(in_groups(groups, rows))


def answer_tokens(prompt: Prompt, config: Config, tokenizer: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The tokens of the lead and those of each reference with its tail. Lead and answer are tokenised separately: no
    token spans both."""
    references = [prompt.answer] if isinstance(prompt.answer, str) else prompt.answer
    lead, tail = config.credit.answer_lead, config.credit.answer_tail
    texts = [(lead, reference + tail) for reference in references]
    encoded = [tuple(tuple(tokenizer.encode(text, add_special_tokens=False)) for text in pair) for pair in texts]
    return [(lead, tokens) for lead, tokens in encoded if tokens]


def starts_of(rollout: Rollout) -> list[tuple[int, ...]]:
    """The policy's context before the first step and after each step but the last."""
    ends = [0, *step_ends(rollout)][:-1] if rollout.steps.texts else []
    return [rollout.prompt.token_ids + rollout.token_ids[:end] for end in ends]


def _wrong(sample: Sample, references: int, found: Iterator[tuple[float, ...] | None]) -> list[float]:
    """[S]. found: yields the log-probs of the sample's references, step end by step end."""
    probabilities = [mean_probability(list(islice(found, references))) for _ in starts_of(sample.rollout)]
    return [(1 - gain) / 2 for gain in step_gains([*probabilities, sample.outcome])] if probabilities else []


def mean_probability(of_references: Sequence[tuple[float, ...] | None]) -> float | None:
    """The geometric mean over the tokens of the most probable reference; None if none is known."""
    known = [math.exp(math.fsum(logprobs) / len(logprobs)) for logprobs in of_references if logprobs is not None]
    return max(known, default=None)
