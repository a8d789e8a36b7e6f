"""Immutable records that are passed between stages.

Letters: L response tokens of one rollout, S its steps, N all tokens of a packed batch, T its response tokens, B its
sequences, G the groups of a training step.

From critiques to token advantages, for a group of two rollouts (C = 2, P = 1):

    rollout 0: right answer, 3 steps of 2 tokens; rollout 1: wrong answer, 2 steps of 2 tokens
    critiques of rollout 0: {1}, {1, 2}  -> intersection vote -> step_wrong (0, 1, 0)
    critiques of rollout 1: {0}, abstained -> step_wrong (1, 0)
    token reward R = C * outcome - P * wrong: rollout 0: 2 2 1 1 2 2; rollout 1: -1 -1 0 0
    advantage (R - mean) / std over the group's 10 tokens: mean 0.8, std 1.166
        -> 1.03 1.03 0.17 0.17 1.03 1.03 | -1.54 -1.54 -0.69 -0.69
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch

import capo_kernels as ck

Member = tuple[int, int]
"""Group and sample: the identity of a rollout in its training step."""


@dataclass(frozen=True)
class Prompt:
    """One problem of the data, with the policy's prompt.

    >>> example = Prompt(id="gsm8k-7", problem="1+1=?", answer="2", solution=None, token_ids=(5, 9, 5))
    """

    id: str
    problem: str
    answer: str | tuple[str, ...]
    """The reference answer, or several, each of which is right."""
    solution: str | None
    token_ids: tuple[int, ...]
    """The rendered prompt (chat template and system prompt applied)."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of its row for reward functions, by name."""


@dataclass(frozen=True)
class StepSpans:
    """The steps of one response, cut on its own generated tokens.

    >>> example = StepSpans(starts=(True, False, True), texts=("a=1", "A:1"))
    """

    starts: tuple[bool, ...]
    """[L], True on the first token of each step."""
    texts: tuple[str, ...]
    """[S], the text of each step in the critic's prompt."""


@dataclass(frozen=True)
class Rollout:
    """One sampled solution of a prompt."""

    prompt: Prompt
    group: int
    """Index of the prompt in its training step: rollouts with the same `group` are one group."""
    sample: int
    """Index of the rollout in its group."""
    version: int
    """Version of the policy that sampled it; under `rollout.carry` the version that sampled its last token."""
    token_ids: tuple[int, ...]
    """[L], the response, with its end-of-sequence token if there is one."""
    logprobs: tuple[float, ...]
    """[L], natural log, under the engine at the sampling temperature."""
    text: str
    finished: bool
    """False if the length limit cut it."""
    steps: StepSpans
    earlier: tuple[tuple[int, int], ...] = ()
    """Version and number of tokens of each part that an earlier policy sampled, oldest first (`rollout.carry`)."""

    @property
    def versions(self) -> tuple[tuple[int, int], ...]:
        """Version and number of tokens of each part."""
        return (*self.earlier, (self.version, len(self.token_ids) - sum(tokens for _, tokens in self.earlier)))


@dataclass(frozen=True)
class Critique:
    """One parsed answer of the critic. An abstained critique has no vote.

    >>> example = Critique(abstained=False, wrong_steps=frozenset({0, 3}), dropped=0)
    """

    abstained: bool
    wrong_steps: frozenset[int]
    dropped: int
    """Number of listed indices outside [0, S)."""
    text: str = field(default="", compare=False)
    truncated: bool = False
    """The length limit cut the answer before the end of its list."""
    failed: bool = False
    """There is no answer: the server could not be reached, or the budget was spent."""
    unread: frozenset[int] = frozenset()
    """Steps without a verdict if each step has its own critiques: not requested, or an abstention."""

    def judges(self, step: int) -> bool:
        """Whether it has a vote on this step."""
        return not self.abstained and step not in self.unread

    @classmethod
    def absent(cls, truncated: bool = False, failed: bool = False) -> Self:
        """An abstention that stands for a missing answer."""
        return cls(abstained=True, wrong_steps=frozenset(), dropped=0, truncated=truncated, failed=failed)


@dataclass(frozen=True)
class Sample:
    """A rollout with everything that credit needs."""

    rollout: Rollout
    outcome: float | None
    """The verdict on the final answer in [0, 1], 1 if right; None if its check, or another reward function, timed out
    (such a rollout is not trained on)."""
    critiques: tuple[Critique, ...]
    step_wrong: tuple[float, ...]
    """[S] in [0, 1], the vote on each step."""
    rewards: tuple[float | None, ...] = ()
    """Values in [0, 1] of `reward.fn` and of each function of `reward.also`; None for a time-out."""


@dataclass(frozen=True)
class CreditedSample:
    """A sample with its credit, computed over its whole group.

    With step credit the loss kernel computes token advantages from `outcome`, `step_wrong` and `stats`, and
    `step_advantages` are the same numbers, one per step. Token credit has `token_advantages`.
    """

    sample: Sample
    trained: bool
    """False: excluded from the loss and from its group's statistics (verifier time-out, masked truncation)."""
    outcome: float
    """The factor of the outcome weight: the verdict plus the weighted values of the other reward functions, format
    bonus and length penalty included; 0 without a verdict."""
    step_wrong: tuple[float, ...]
    """[S] in [0, 1], the factor of the process weight; zeros with token credit."""
    stats: tuple[float, ...]
    """Outcome shift and scale, process shift and scale of its group (`capo_kernels.credit_stats`); zeros with token
    credit."""
    step_advantages: tuple[float, ...]
    """[S], the advantage of each step's tokens; with token credit the one of largest magnitude, so that it is 0 only if
    all are. 0 if not trained."""
    token_advantages: tuple[float, ...] | None = None
    """[L], advantages of token credit, 0 if not trained; None: step credit."""

    @property
    def rollout(self) -> Rollout:
        return self.sample.rollout


@dataclass(frozen=True)
class Request:
    """One generation request to the engine. The seed makes its answer repeatable."""

    id: str
    prompt_ids: tuple[int, ...]
    seed: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    base: bool = False
    """Answered by the frozen base, without the policy's LoRA adapter."""
    message: str = ""
    """A critique's prompt as text, for a server with its own chat template."""
    regex: str | None = None
    """Pattern of the whole answer (structured output)."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, which includes the one that occurred."""
    scored: int = 0
    """If not 0, nothing is sampled: the answer is the last `scored` tokens of the prompt, which has at least one more,
    with their log-probs at temperature 1."""


_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def unicode_text(text: str) -> str:
    """The text with U+FFFD for NUL and for halves of surrogate pairs, which UTF-8 can't encode."""
    return _NO_TEXT.sub("\ufffd", text)


@dataclass(frozen=True)
class Completion:
    """The engine's finished answer to one request."""

    id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    """Valid Unicode: `unicode_text` of the model's or the server's text."""
    finished: bool
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Tokens of the answer as counted by a server, which sends no ids."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were cached."""
    error: str | None = None
    """Cause of a missing answer: an unreachable server or a spent budget."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", unicode_text(self.text))

    @property
    def tokens(self) -> int:
        return len(self.token_ids) or self.answer_tokens


@dataclass(frozen=True)
class TokenBatch:
    """A packed row: concatenated prompts and responses, without padding.

    A prompt that several responses share is in the row once. The row is cut into segments: a prompt with its only
    response, or a prompt followed by each of its responses. The last token of a response predicts nothing and is
    omitted. `rows` selects from the N packed positions the T that predict a response token; the last position of a
    prompt is selected once per response.
    """

    input_ids: torch.Tensor
    """int64 [N]"""
    position_ids: torch.Tensor
    """int64 [N], 0 at the start of each prompt; every response continues its prompt's positions"""
    lengths: tuple[int, ...]
    """Tokens of each segment, at least 1; their sum is N"""
    prefix: tuple[int | None, ...]
    """For each segment, the index of the earlier segment that its tokens attend to as well, or None"""
    rows: torch.Tensor
    """int64 [T], indices into N"""
    targets: torch.Tensor
    """int64 [T]"""

    def to(self, device: torch.device) -> Self:
        return _to(self, device)


@dataclass(frozen=True)
class PackedBatch(TokenBatch):
    """One micro-batch of training. Every [T] tensor is aligned with `rows` and `targets`."""

    weights: torch.Tensor
    """float32 [T], the weight of each token in the loss; 0 if it is not trained"""
    cu_seqlens: torch.Tensor
    """int32 [B + 1], bounds of the responses in the T rows"""
    credit: ck.Credit | None
    """Steps, votes, outcomes and the statistics of whole groups; None with token credit"""
    advantages: torch.Tensor | None
    """float32 [T], token credit; None with step credit"""
    rollout_logprobs: torch.Tensor
    """float32 [T], the engine's log-probs"""
    old_logprobs: torch.Tensor | None = None
    """float32 [T], log-probs of the policy before the batch's first update; None: ratio 1"""
    ref_logprobs: torch.Tensor | None = None
    """float32 [T], log-probs of the reference; None without a KL term"""


def _to(record: Any, device: torch.device) -> Any:
    moved = {}
    for each in fields(record):
        value = getattr(record, each.name)
        if isinstance(value, torch.Tensor):
            moved[each.name] = value.to(device, non_blocking=True)
        elif isinstance(value, ck.Credit):
            moved[each.name] = _to(value, device)
    return replace(record, **moved)
