"""Samples with verdicts and votes, of any lengths."""

from __future__ import annotations

from capo_fast.records import Prompt, Rollout, Sample, StepSpans


def sample(outcome, wrong, group=0, finished=True, text="", tokens_per_step=2, tokens=None):
    length = tokens or tokens_per_step * len(wrong)
    starts = tuple(i % tokens_per_step == 0 and i // tokens_per_step < len(wrong) for i in range(length))
    steps = StepSpans(starts, ("s",) * len(wrong))
    prompt = Prompt("p", "", "", None, (1,))
    rollout = Rollout(prompt, group, 0, 0, (1,) * length, (0.0,) * length, text, finished, steps)
    return Sample(rollout, outcome, (), tuple(map(float, wrong)))
