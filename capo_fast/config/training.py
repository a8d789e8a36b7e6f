"""Sections of the learner's settings, and of evaluation, checkpoints and the canary."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from capo_fast.config.types import (
    POSITIVE,
    STRICT,
    Beta,
    CountWhereUsed,
    FilePath,
    MayChange,
    NumberWhereUsed,
    ShareWhereUsed,
    WhereUsed,
)


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    objective: Literal["ppo", "cispo", "reinforce"] = "ppo"
    """Policy-gradient objective."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio per token, or per sequence (GSPO)."""
    clip_low: Annotated[NonNegativeFloat, WhereUsed((Le(1),))] = 0.2
    """Clip range below 1."""
    clip_high: NonNegativeFloat = 0.2
    """Clip range above 1 (for cispo: the cap is 1 + clip_high)."""
    dual_clip: Annotated[NonNegativeFloat | None, WhereUsed((Gt(1),))] = None
    """Bound of the loss for negative advantages (dual clip); None: off."""
    aggregation: Literal["sequence-mean", "token-mean", "constant"] = "sequence-mean"
    """Average by sequence, over all tokens of an update, or over rollouts x rollout.max_tokens."""
    kl_coef: NonNegativeFloat = 0.01
    """Weight of the KL to the frozen reference; 0: no reference is loaded."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL."""
    kl_ratio: bool = False
    """Multiply the KL by the importance ratio."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    is_mode: Literal["truncate", "mask"] | None = None
    """Importance sampling against the engine's own log-probs: truncate or mask the weight; None: off.
    Needs rollout.top_p and rollout.top_k off."""
    is_level: Literal["token", "sequence"] = "token"
    """Importance weight per token or per sequence."""
    is_low: NonNegativeFloat = 0.0
    """mask: lower bound of the importance weight."""
    is_high: NumberWhereUsed = 2.0
    """Upper bound of the importance weight."""


@dataclass(frozen=True, config=STRICT)
class ReferenceConfig:
    offload: bool = False
    """Keep the weights of the KL's reference on the host, sharded over ranks like the policy's; a layer is on the GPU
    only during its forward pass. No effect on a CPU, and with LoRA, where the reference is the policy's own base."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    steps: MayChange[NonNegativeInt] = 200
    """Training steps: one batch of rollouts each."""
    epochs: PositiveInt = 4
    """Passes over each batch of rollouts."""
    minibatches: PositiveInt = 1
    """Optimizer updates per pass; a group is never split over updates."""
    lr: NonNegativeFloat = 1e-7
    """Peak learning rate of AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's betas."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    warmup_steps: NonNegativeInt = 0
    """Updates of linear warm-up."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning rate after the warm-up, over all updates of `train.steps`."""
    optimizer: Literal["adamw", "adamw-fused", "adamw-8bit"] = "adamw"
    """adamw: torch's; adamw-fused: the same in one kernel, without temporary tensors; adamw-8bit: its moments in 8
    bits, by the package torchao."""
    offload_optimizer: MayChange[bool] = False
    """Keep the optimizer's moments on the host between updates. No effect on a CPU."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    micro_tokens: MayChange[PositiveInt] = 16384
    """Most tokens of a micro-batch on one rank: responses, and each group's prompt once."""
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    """Rollouts cut by the length limit: train on them, mask them, or add a length penalty to their reward."""
    overlong_buffer: NonNegativeInt = 0
    """penalise: tokens before rollout.max_tokens over which the penalty grows from 0 to 1 (DAPO's soft overlong
    punishment, arXiv 2503.14476, Eq. 13); 0: a fifth, as there."""
    dynamic_sampling: bool = False
    """Drop groups whose advantages are all 0, and sample other groups instead."""
    max_rounds: CountWhereUsed = 4
    """dynamic_sampling: most sampling rounds per step to fill its batch."""
    max_bad_updates: PositiveInt = 3
    """Stop after this many updates in a row with a loss or gradient that is not finite; each is skipped."""
    profile: MayChange[PositiveInt | None] = None
    """Trace this step with torch.profiler on rank 0, into `profile/` of the run's folder; None: no step."""
    stage_timeout_s: MayChange[PositiveFloat] = 1800.0
    """Deadline of one stage of a step, seconds; after it every rank writes its stacks and exits."""


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    path: FilePath | None = None
    """Held-out problems, in the format of data.path; None: no evaluation."""
    name: str | None = None
    """Configuration of a Hugging Face dataset that has several."""
    split: str = "test"
    """Split, for a Hugging Face dataset."""
    every: MayChange[NonNegativeInt] = 0
    """Evaluate every N steps and at the first and last; 0: only those two."""
    n: CountWhereUsed = 1
    """Samples per problem."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: ShareWhereUsed = 1.0
    """Nucleus sampling."""
    limit: Annotated[NonNegativeInt | None, POSITIVE] = None
    """Only the first N problems."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    every: NonNegativeInt = 10
    """Checkpoint every N steps and at the first and last; 0: only those two."""
    asynchronous: MayChange[bool] = False
    """Continue training while a thread of each rank writes the checkpoint, from a copy of its state in host memory."""
    keep: PositiveInt = 2
    """Number of last checkpoints to keep; the best by evaluation is kept as well."""
    export_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the exported policy in `model/`."""


@dataclass(frozen=True, config=STRICT)
class SyncConfig:
    probe_sequences: PositiveInt = 1
    """Sequences of the canary's probe batch."""
    probe_tokens: Annotated[int, Field(ge=2)] = 33
    """Tokens of each probe sequence; more than 32, a block of vLLM's cache on a CPU, also detect a stale prefix."""
    max_logprob_gap: PositiveFloat | None = None
    """Largest mean |difference| of the probe's log-probs; None: 1e-4 in float32, 0.1 in bfloat16."""
