"""Credited samples whose token ids encode their place."""

from __future__ import annotations

from capo_fast.exchange.columns import Share
from capo_fast.policy.batch import pack_columns
from capo_fast.records import CreditedSample, Prompt, Rollout, Sample, StepSpans


def credited(
    prompt: int = 2,
    response: int = 3,
    group: int = 0,
    sample: int = 0,
    trained: bool = True,
    advantage: float = 1.0,
):
    """A sample whose tokens encode their place: 1000 * group + 100 * sample + position; a group shares its prompt."""
    base = 1000 * group + 100 * sample
    starts = tuple(i % 2 == 0 for i in range(response))
    rollout = Rollout(
        prompt=Prompt("p", "", "", None, tuple(1000 * group + i for i in range(prompt))),
        group=group,
        sample=sample,
        version=0,
        token_ids=tuple(base + prompt + i for i in range(response)),
        logprobs=tuple(-0.1 * i for i in range(response)),
        text="",
        finished=True,
        steps=StepSpans(starts, ("s",) * sum(starts)),
    )
    wrong = tuple(float(i == 0) for i in range(sum(starts)))
    inner = Sample(rollout, outcome=float(sample % 2), critiques=(), step_wrong=wrong)
    stats = (0.5, 1.0 + group, 0.0, 1.0 + group)
    return CreditedSample(inner, trained, float(sample % 2), wrong, stats, (advantage,) * len(wrong))


def pack(samples, denominator, config):
    """One micro-batch of all of these samples."""
    share = Share.of(samples)
    return pack_columns(share.columns, share.prompts, denominator, config)
