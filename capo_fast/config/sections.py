"""The sections of the settings: a field's type has its bounds, its docstring is its text in `--help`.

Those of the critic are in config/critic.py, those of credit in config/credit.py; those that the learner reads, and the
run's bookkeeping, in config/training.py.

The defaults are the paper's CAPO set-up where the paper states one.
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
    """Weights & Biases project to log to as well; None: don't."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    path: FilePath = "Qwen/Qwen2.5-1.5B-Instruct"
    """Folder or hub id of the policy: a dense Qwen2/2.5/3 or Llama; `pkg://package/file` names a packaged one."""
    untested: bool = False
    """Accept an architecture outside the tested table; the sync canary still guards it."""


@dataclass(frozen=True, config=STRICT)
class PolicyConfig:
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of forward and backward; the master weights and the optimizer are float32 always."""
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel of the trainer. sdpa: torch's own, on a GPU its FlashAttention for all packed sequences in one
    launch (torch 2.11); in float32 there, which that does not take, over a padded batch. flash_attention_2: the package
    flash-attn, on a GPU in bfloat16; it alone takes a model with a sliding window."""
    loss_kernel: MayChange[Literal["auto", "reference", "cpu", "triton", "cuda"]] = "auto"
    """Implementation of capo_kernels for log-probs and loss; auto: the fastest that runs here; reference: plain torch.
    One that can't run here is refused at the start, with the reason."""
    gradient_checkpointing: MayChange[bool | PositiveInt] = False
    """Recompute decoder layers in the backward pass to save memory: true all of them, a number every n-th one, from the
    first on."""
    offload_activations: MayChange[bool] = False
    """Keep the layers' inputs on the host until the backward pass. Wants gradient_checkpointing: true, under which the
    layers keep nothing else. On a CPU it only copies."""
    shard: MayChange[Literal["node", "all"]] = "node"
    """Ranks over which weights, gradients and optimizer are sharded. node: those of a host, and every host has a copy,
    so that gradients alone cross the network between hosts (HSDP); all: of all hosts. On one host the same."""
    old: Literal["trainer", "rollout"] = "trainer"
    """Old log-probs when a batch gets several updates: a forward pass before the first, or the engine's own. The
    engine's are those it sampled from, and want rollout.top_p and rollout.top_k off, which normalise over fewer tokens.
    """


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
    """Field of a problem's id; where a row has none, its row number is the id. As in all names of fields, a dot leads
    into a nested field: reward_model.ground_truth."""
    prompt_field: str = "problem"
    """Field of the question: text, or a list of messages (role, content), whose own system message is kept."""
    answer_field: str = "answer"
    """Field of the reference answer: text, a number, or a list of answers, each of them right."""
    solution_field: str | None = None
    """Field of a reference solution for the critic; None: the critic is shown none."""
    system_prompt: str | None = "Please reason step by step, and put your final answer within \\boxed{}."
    """System message of every prompt; None: no system message."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """Problems whose prompt and longest response exceed engine.max_model_len: refuse the run, or drop and count."""
    date: str | None = None
    """Today, as 2026-11-29, for a chat template that writes the date; None: the day on which the run starts. A resumed
    run keeps it."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the policy's chat template, as `{enable_thinking: false}`."""


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    prompts: PositiveInt = 12
    """Prompts (groups) per step."""
    n: PositiveInt = 16
    """Rollouts per prompt."""
    temperature: PositiveFloat = 0.7
    """Sampling temperature; the trainer's log-probs are taken at the same."""
    top_p: Share = 0.9
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Top-k sampling; -1 is off."""
    max_tokens: PositiveInt = 2048
    """Longest response, in tokens."""
    carry: bool = False
    """Stop the last rollouts of a step, and go on with them in the next one, under the next policy: no step waits for
    its longest rollout. Wants a loss that weighs tokens of earlier policies: loss.is_mode, or policy.old: rollout."""
    enough: Annotated[NonNegativeInt | None, POSITIVE] = None
    """carry: a step leaves at most rollout.prompts minus this many groups open; None: three quarters of
    rollout.prompts, rounded up."""
    max_staleness: CountWhereUsed = 2
    """carry: a group whose oldest token would be more than so many policy versions old in the next step is completed in
    this one. With engine.ranks at least 2."""

    @property
    def may_stay_open(self) -> int:
        """Groups that a step may leave open under carry."""
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
    """Skip compilation and CUDA graphs: starts in seconds, decodes more slowly. Compiled code is kept for later starts
    in vLLM's cache, $VLLM_CACHE_ROOT or vllm in $XDG_CACHE_HOME or ~/.cache."""
    merge_lora: MayChange[bool | Literal["auto"]] = "auto"
    """Whether the engine holds a LoRA adapter merged into the base. Critiques by the base then wait for the last
    rollout: base and policy take turns, the adapted weights alone. auto: on a CPU, where vLLM is much slower with
    adapters."""
    tensor_parallel: MayChange[PositiveInt] = 1
    """Ranks that hold one engine together, each a slice of every weight; the number of ranks is a multiple of it."""
    ranks: NonNegativeInt = 0
    """The last so many ranks only hold engines, the others only learn: a step's rollouts are generated while the step
    before is learned, by weights one version old. 0: every rank does both, in turns."""


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    fn: str = "capo_fast.verify:answers_equal"
    """Outcome reward `package.module:function`, called as fn(response, reference answer) -> bool or float in [0, 1].
    Further parameters take columns of the problem's row by name; `responses` as the first one takes lists."""
    also: tuple[str, ...] = ()
    """Further reward functions of the same kind; their weighted values are added to the outcome that credit is given
    for. What is right, and every pass rate, is the verdict of reward.fn alone."""
    weights: tuple[float, ...] = ()
    """Weight of each function of reward.also, as 0.2,-0.1; that of reward.fn is 1."""
    tolerance: NonNegativeFloat = 0.0
    """Relative tolerance of the rule verifier where a number is a decimal, as 0.01; 0: equal to six decimals. A reward
    function that takes a parameter `tolerance` is given it."""
    percent: bool = True
    """Whether 28 equals 28 %, as 0.28 does; false: 0.28 alone. A reward function that takes a parameter `percent` is
    given it."""
    format_bonus: NonNegativeFloat = 0.0
    r"""Added to the token reward where the response has a \boxed{} answer; must stay below C - P."""
    workers: MayChange[PositiveInt] = 1
    """Processes per rank, for each reward function, that check answers."""
    timeout_s: MayChange[PositiveFloat] = 5.0
    """Deadline of one call of a reward function, seconds: for one answer, or for all that it is given in lists. A
    time-out is counted, and the rollout is left out of training."""
    memory_limit: MayChange[PositiveFloat | None] = 4.0
    """Most memory of a process that checks answers, GiB; an answer that takes more counts as a time-out; None: no
    limit."""
    max_failed_steps: MayChange[PositiveInt] = 1
    """Stop after this many steps in a row in which no answer got a verdict."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the functions, without their modules."""
        return tuple(name.rpartition(":")[2] for name in (self.fn, *self.also))

    @property
    def conventions(self) -> dict[str, float]:
        """What counts as equal where fields differ: given to functions that take parameters of these names."""
        return {"tolerance": self.tolerance, "percent": self.percent}
