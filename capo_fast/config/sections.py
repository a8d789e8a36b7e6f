"""Sections of the settings. A field's type has its bounds, and its docstring is its text in `--help`.

The critic's sections are in config/critic.py, credit's in config/credit.py, and those of the learner, evaluation and
checkpoints in config/training.py. The defaults are the paper's CAPO set-up where the paper states one.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from capo_fast.config.types import (
    POSITIVE,
    STRICT,
    CountWhereUsed,
    FilePath,
    MayChange,
    NumberWhereUsed,
    Share,
)


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    dir: FilePath | None = None
    """Folder of the run; None makes `runs/<algorithm>-<date>-<time>`."""
    keep_rollouts: PositiveInt | Literal["all", "none"] = "all"
    """Steps whose rollouts are kept on disk: all, the last N, or none."""
    wandb: str | None = None
    """Weights & Biases project to log to as well; None: off."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    path: FilePath = "Qwen/Qwen2.5-1.5B-Instruct"
    """Folder or hub id of the policy: a dense Qwen2/2.5/3 or Llama; `pkg://package/file` names a packaged one."""
    untested: bool = False
    """Accept an architecture outside the tested table; the sync canary still checks it."""


@dataclass(frozen=True, config=STRICT)
class PolicyConfig:
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of forward and backward; the master weights and the optimizer are always float32."""
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel of the trainer. sdpa: torch's own; on a GPU in bfloat16 FlashAttention over all packed sequences
    in one launch (torch 2.11), in float32 over a padded batch. flash_attention_2: the package flash-attn, on a GPU in
    bfloat16; only this one supports a sliding window."""
    loss_kernel: MayChange[Literal["auto", "reference", "cpu", "triton", "cuda"]] = "auto"
    """Implementation of capo_kernels for log-probs and loss; auto: the fastest that runs here; reference: plain torch.
    One that can't run here is refused at the start, with the reason."""
    gradient_checkpointing: MayChange[bool | PositiveInt] = False
    """Recompute decoder layers in the backward pass to save memory: true: all layers; a number n: every n-th layer,
    starting with the first."""
    offload_activations: MayChange[bool] = False
    """Keep the layers' inputs on the host until the backward pass. Needs gradient_checkpointing: true, with which
    layers keep nothing else. On a CPU it only copies."""
    shard: MayChange[Literal["node", "all"]] = "node"
    """Ranks over which weights, gradients and optimizer are sharded. node: the ranks of a host; every host has a copy,
    so that only gradients cross the network between hosts (HSDP). all: the ranks of all hosts. Equal on one host."""
    old: Literal["trainer", "rollout"] = "trainer"
    """Old log-probs when a batch gets several updates: from a forward pass before the first, or the engine's own. The
    engine's need rollout.top_p and rollout.top_k off, with which they are normalised over fewer tokens."""


@dataclass(frozen=True, config=STRICT)
class LoraConfig:
    rank: Annotated[int, Field(ge=0, le=512)] = 0
    """Rank of the policy's LoRA adapter over a frozen base; 0: full fine-tuning."""
    alpha: NumberWhereUsed = 32.0
    """The adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter, by the last part of their names."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    path: FilePath | None = None
    """Training problems: a JSONL, JSONL.gz or Parquet file, a saved dataset's folder, or a Hugging Face dataset id."""
    name: str | None = None
    """Configuration of a Hugging Face dataset that has several (openai/gsm8k: main)."""
    split: str = "train"
    """Split, for a Hugging Face dataset."""
    id_field: str = "id"
    """Field of a problem's id; a row without one has its row number as id. In all field names a dot selects a nested
    field: reward_model.ground_truth."""
    prompt_field: str = "problem"
    """Field of the question: text, or a list of messages (role, content), whose own system message is kept."""
    answer_field: str = "answer"
    """Field of the reference answer: text, a number, or a list of answers, each of which is right."""
    solution_field: str | None = None
    """Field of a reference solution for the critic's prompt; None: no reference solution."""
    system_prompt: str | None = "Please reason step by step, and put your final answer within \\boxed{}."
    """System message of every prompt; None: no system message."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """Problems whose prompt and longest response exceed engine.max_model_len: refuse the run, or drop and count."""
    date: str | None = None
    """The date, such as 2026-11-29, for chat templates that print it; None: the day on which the run starts. A resumed
    run keeps it."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the policy's chat template, such as `{enable_thinking: false}`."""


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    prompts: PositiveInt = 12
    """Prompts (groups) per step."""
    n: PositiveInt = 16
    """Rollouts per prompt."""
    temperature: PositiveFloat = 0.7
    """Sampling temperature; the trainer computes log-probs at the same temperature."""
    top_p: Share = 0.9
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Top-k sampling; -1 is off."""
    max_tokens: PositiveInt = 2048
    """Longest response, in tokens."""
    carry: bool = False
    """Stop the last rollouts of a step and continue them in the next step, under the next policy, so that no step waits
    for its longest rollout. Needs a loss that reweights tokens of earlier policies: loss.is_mode, or policy.old:
    rollout."""
    enough: Annotated[NonNegativeInt | None, POSITIVE] = None
    """carry: a step leaves at most rollout.prompts minus this many groups unfinished; None: three quarters of
    rollout.prompts, rounded up."""
    max_staleness: CountWhereUsed = 2
    """carry: largest age of a group's oldest token, in policy versions; a group that would exceed it in the next step
    is completed in this one. With engine.ranks at least 2."""

    @property
    def may_stay_open(self) -> int:
        """Most groups that a step may leave unfinished under carry."""
        return self.prompts - (-(-3 * self.prompts // 4) if self.enough is None else self.enough)


@dataclass(frozen=True, config=STRICT)
class EngineConfig:
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the engine's weights and arithmetic."""
    max_model_len: PositiveInt = 8192
    """Longest prompt plus answer, in tokens, critiques included."""
    max_num_seqs: MayChange[PositiveInt] = 256
    """Sequences decoded at once."""
    kv_cache_gb: MayChange[PositiveFloat] = 4.0
    """Size of the engine's key/value cache, GiB per rank."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: starts in seconds, decodes more slowly. Compiled code is cached for later
    starts in $VLLM_CACHE_ROOT, or in the folder vllm of $XDG_CACHE_HOME or ~/.cache."""
    merge_lora: MayChange[bool | Literal["auto"]] = "auto"
    """Whether the LoRA adapter is merged into the engine's base. Critiques by the base then wait for the last rollout,
    and the adapted weights of base and policy are swapped. auto: true on a CPU, where vLLM is much slower with
    adapters."""
    tensor_parallel: MayChange[PositiveInt] = 1
    """Ranks that share one engine, each with a slice of every weight; must divide the number of ranks."""
    ranks: NonNegativeInt = 0
    """Number of ranks, the last ones, that only hold engines; the others only learn. A step's rollouts are then
    generated during the previous step's learning, by weights one version old. 0: every rank does both, in turns."""


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    fn: str = "capo_fast.verify:answers_equal"
    """Outcome reward `package.module:function`, called as fn(response, reference answer) -> bool or float in [0, 1].
    Further parameters receive columns of the problem's row by name. If the first one is named `responses`, it is called
    with lists."""
    also: tuple[str, ...] = ()
    """Further reward functions of the same kind; their weighted values are added to the outcome for credit. Right
    answers and pass rates depend on the verdict of reward.fn alone."""
    weights: tuple[float, ...] = ()
    """Weight of each function of reward.also, such as 0.2,-0.1; the weight of reward.fn is 1."""
    tolerance: NonNegativeFloat = 0.0
    """Relative tolerance of the rule verifier if a number is a decimal, such as 0.01; 0: equal to six decimals. Passed
    to reward functions with a parameter `tolerance`."""
    percent: bool = True
    """Whether 28 % equals 28 as well as 0.28; false: only 0.28. Passed to reward functions with a parameter
    `percent`."""
    format_bonus: NonNegativeFloat = 0.0
    r"""Added to the token reward if the response has a \boxed{} answer; must be less than C - P."""
    workers: MayChange[PositiveInt] = 1
    """Worker processes per rank and reward function that check answers."""
    timeout_s: MayChange[PositiveFloat] = 5.0
    """Deadline of one call of a reward function, seconds: for one answer, or for all answers of a call with lists. A
    time-out is counted, and the rollout is not trained on."""
    memory_limit: MayChange[PositiveFloat | None] = 4.0
    """Memory limit of a worker process, GiB; an answer that needs more counts as a time-out; None: no limit."""
    max_failed_steps: MayChange[PositiveInt] = 1
    """Stop after this many steps in a row without any verdict."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the functions, without their modules."""
        return tuple(name.rpartition(":")[2] for name in (self.fn, *self.also))

    @property
    def conventions(self) -> dict[str, float]:
        """Rules of equality that differ between fields, passed to functions with parameters of these names."""
        return {"tolerance": self.tolerance, "percent": self.percent}
