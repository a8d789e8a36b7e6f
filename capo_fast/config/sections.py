"""The sections of the settings: a field's type has its bounds, its docstring is its text in `--help`.

The defaults are the paper's CAPO set-up where the paper states one.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from capo_fast.config.types import STRICT, Beta, MayChange, Norm, Share


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    dir: str | None = None
    """Folder of the run; None makes `runs/<algorithm>-<date>-<time>`."""
    keep_rollouts: PositiveInt | Literal["all", "none"] = "all"
    """Steps whose rollouts are kept on disk: all, the last N, or none."""
    wandb: str | None = None
    """Weights & Biases project to log to as well; None: don't."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    path: str = "Qwen/Qwen2.5-1.5B-Instruct"
    """Folder or hub id of the policy: a dense Qwen2/2.5/3 or Llama; `pkg://package/file` names a packaged one."""
    untested: bool = False
    """Accept an architecture outside the tested table; the sync canary still guards it."""


@dataclass(frozen=True, config=STRICT)
class PolicyConfig:
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of forward and backward; the master weights and the optimizer are float32 always."""
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel of the trainer."""
    loss_kernel: MayChange[Literal["auto", "reference", "cpu", "triton", "cuda"]] = "auto"
    """Implementation of capo_kernels for log-probs and loss; auto: the fastest that runs here; reference: plain torch.
    One that can't run here is refused at the start, with the reason."""
    gradient_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass to save memory."""
    old: Literal["trainer", "rollout"] = "trainer"
    """Old log-probs when a batch gets several updates: a forward pass before the first, or the engine's own. The
    engine's are those it sampled from: with top-p or top-k they are normalised over the nucleus."""


@dataclass(frozen=True, config=STRICT)
class LoraConfig:
    rank: Annotated[int, Field(ge=0, le=512)] = 0
    """Rank of the policy's LoRA adapter over a frozen base; 0: full fine-tuning."""
    alpha: PositiveFloat = 32.0
    """The adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter, by the last part of their names."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    path: str | None = None
    """Training problems: a JSONL, JSONL.gz or Parquet file, or a Hugging Face dataset id."""
    name: str | None = None
    """Configuration of a Hugging Face dataset that has several (openai/gsm8k: main)."""
    split: str = "train"
    """Split, for a Hugging Face dataset."""
    id_field: str = "id"
    """Field of a problem's id; where a row has none, its row number is the id."""
    prompt_field: str = "problem"
    """Field of the question."""
    answer_field: str = "answer"
    """Field of the reference answer."""
    solution_field: str | None = None
    """Field of a reference solution for the critic; None: the critic is shown none."""
    system_prompt: str | None = "Please reason step by step, and put your final answer within \\boxed{}."
    """System message of every prompt; None: no system message."""
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
    """Skip compilation and CUDA graphs: starts in seconds, decodes more slowly."""
    tensor_parallel: MayChange[PositiveInt] = 1
    """Ranks that hold one engine together, each a slice of every weight; the number of ranks is a multiple of it."""


@dataclass(frozen=True, config=STRICT)
class CriticConfig:
    mode: Literal["frozen", "self", "endpoint"] = "frozen"
    """What critiques: frozen weights in the engine (under LoRA the base itself), the current policy, or a server."""
    path: str | None = None
    """frozen: its weights, of the policy's architecture; None: a frozen copy of the policy's first weights."""
    votes: PositiveInt = 4
    """Critiques per rollout (k)."""
    voting: Literal["intersection", "majority", "union", "average", "greedy"] = "intersection"
    """How k critiques become one verdict per step; greedy: one critique at temperature 0."""
    temperature: NonNegativeFloat = 0.7
    """Sampling temperature of critiques."""
    top_p: Share = 0.9
    """Nucleus sampling of critiques."""
    max_tokens: PositiveInt = 2048
    """Longest critique, in tokens."""
    prompt: str = "pkg://capo_fast.credit/prompts/genprm.txt"
    """Jinja2 template file of the critic's prompt."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the critic's chat template, as `{enable_thinking: false}`; a server gets them as
    chat_template_kwargs, which vLLM and SGLang read."""
    stream: bool = True
    """Critiques start as soon as their rollout has ended; false: after the last one, as always where weights are
    swapped."""
    judge_once: bool = True
    """Equal rollouts of a prompt share the critiques of the first of them to end (on one rank)."""
    structured: bool = False
    """Constrain the end of a critique to the form that is read, by the engine's structured output."""


@dataclass(frozen=True, config=STRICT)
class EndpointConfig:
    url: MayChange[str | None] = None
    """Base address of an OpenAI-compatible server, as http://host:8000/v1; wanted by critic.mode: endpoint. Without
    user and password: it is shown and saved."""
    model: str | None = None
    """The server's name of the critic; None: the only one it offers."""
    api_key_env: MayChange[str] = "OPENAI_API_KEY"
    """Environment variable that holds the key; if it is unset, none is sent."""
    max_tokens_field: MayChange[Literal["max_tokens", "max_completion_tokens"]] = "max_tokens"
    """Field of a request that holds critic.max_tokens: hosted reasoning models want max_completion_tokens."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request, as `{reasoning_effort: low}`; they win, and null takes one out, as
    `{temperature: null}`."""
    concurrency: MayChange[PositiveInt] = 64
    """Concurrent requests per rank."""
    timeout_s: MayChange[PositiveFloat] = 300.0
    """Deadline of one try, seconds."""
    retries: MayChange[NonNegativeInt] = 3
    """Tries after the first, where the server is overloaded or can't be reached. The pauses before them grow from 0.5 s
    to 8 s, or are what the server asks for; where that is more than 120 s, the request fails at once."""
    budget_tokens: MayChange[PositiveInt | None] = None
    """Tokens, prompts included, that all critiques of a run may use; None: no limit. Requests in flight when it is
    spent may exceed it; a try without an answer is not counted; a resumed run counts from its checkpoint."""
    on_failure: MayChange[Literal["stop", "outcome"]] = "stop"
    """An unreachable critic, a refused request or a spent budget: stop, or go on with outcome credit and count it. Both
    stop where the key or the address is refused (401, 403, 404), or all requests before the first answer."""


@dataclass(frozen=True, config=STRICT)
class CreditConfig:
    process: Literal["steps", "prefix", "none"] = "steps"
    """What wrong steps do: penalise their own tokens (CAPO), cut credit from the first one on (prefix), or nothing."""
    outcome_weight: NonNegativeFloat = 2.0
    """C, the weight of the outcome reward."""
    process_weight: NonNegativeFloat = 1.0
    """P, the weight of the process penalty; C > P is a rule of the paper."""
    allow_process_dominance: bool = False
    """Accept C <= P, against the paper's finding that accuracy then falls."""
    norm: Norm = "group-token"
    """Normalisation of token rewards within a group."""
    std_floor: NonNegativeFloat | None = None
    """Smallest std to divide by; None: 0.25 for capo with group-sequence, else 0."""
    when: Literal["always", "wrong-answers", "mixed-groups"] = "always"
    """Which rollouts the critic reads: all, wrong answers, or those of groups with right and wrong ones. The latter two
    wait for the last rollout and its verdict."""


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    fn: str = "capo_fast.verify:answers_equal"
    """Outcome reward `package.module:function`, called as fn(response, reference answer) -> bool or float in [0, 1]."""
    format_bonus: NonNegativeFloat = 0.0
    r"""Added to the token reward where the response has a \boxed{} answer; must stay below C - P."""
    workers: MayChange[PositiveInt] = 1
    """Processes per rank that check answers."""
    timeout_s: MayChange[PositiveFloat] = 5.0
    """Deadline for one answer, seconds; a time-out is counted and the rollout is left out of training."""


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    objective: Literal["ppo", "cispo", "reinforce"] = "ppo"
    """Policy-gradient objective."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio by token, or by sequence (GSPO)."""
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Clip range below 1."""
    clip_high: NonNegativeFloat = 0.2
    """Clip range above 1 (for cispo: the cap is 1 + clip_high)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Lower bound of the loss where the advantage is negative; None: off."""
    aggregation: Literal["sequence-mean", "token-mean", "constant"] = "sequence-mean"
    """Average by sequence, over all tokens of an update, or over rollouts x rollout.max_tokens."""
    kl_coef: NonNegativeFloat = 0.01
    """Weight of the KL to the frozen reference; 0: no reference is kept."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL."""
    kl_ratio: bool = False
    """Multiply the KL by the importance ratio."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    is_mode: Literal["truncate", "mask"] | None = None
    """Importance sampling against the engine's own log-probs: truncate or mask the weight; None: off."""
    is_level: Literal["token", "sequence"] = "token"
    """That weight by token or by sequence."""
    is_low: NonNegativeFloat = 0.0
    """Lower bound of the weight (mask)."""
    is_high: PositiveFloat = 2.0
    """Upper bound of the weight."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    steps: MayChange[NonNegativeInt] = 200
    """Training steps: one batch of rollouts each."""
    epochs: PositiveInt = 4
    """Passes over each batch of rollouts."""
    minibatches: PositiveInt = 1
    """Optimizer updates per pass; a group is never split."""
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
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    micro_tokens: MayChange[PositiveInt] = 16384
    """Tokens (prompts included) a micro-batch may hold on one rank."""
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    """Rollouts cut by the length limit: train on them, leave them out, or add a length penalty to their reward."""
    overlong_buffer: NonNegativeInt = 0
    """penalise: tokens before rollout.max_tokens over which the penalty grows from 0 to 1; 0: a fifth (DAPO)."""
    dynamic_sampling: bool = False
    """Drop groups whose advantages are all 0 and sample others in their place."""
    max_rounds: PositiveInt = 4
    """Most sampling rounds per step, to fill its batch under dynamic_sampling."""
    max_bad_updates: PositiveInt = 3
    """Stop after this many updates in a row with a loss or gradient that is not finite; each is skipped."""
    stage_timeout_s: MayChange[PositiveFloat] = 1800.0
    """Deadline of one stage of a step, seconds: past it every rank writes its stacks and exits."""


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    path: str | None = None
    """Held-out problems, in the format of data.path; None: no evaluation."""
    name: str | None = None
    """Configuration of a Hugging Face dataset that has several."""
    split: str = "test"
    """Split, for a Hugging Face dataset."""
    every: MayChange[NonNegativeInt] = 0
    """Evaluate every N steps and at the first and last; 0: only those two."""
    n: PositiveInt = 1
    """Samples per problem."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: Share = 1.0
    """Nucleus sampling."""
    limit: PositiveInt | None = None
    """Only the first N problems."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    every: NonNegativeInt = 10
    """Checkpoint every N steps and at the first and last; 0: only those two."""
    keep: PositiveInt = 2
    """How many of the last checkpoints are kept; the best by evaluation is kept as well."""
    export_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the exported policy in `model/`."""


@dataclass(frozen=True, config=STRICT)
class SyncConfig:
    probe_sequences: PositiveInt = 4
    """Sequences of the canary's probe batch."""
    probe_tokens: PositiveInt = 32
    """Tokens of each."""
    max_logprob_gap: PositiveFloat | None = None
    """Largest mean |difference| of the probe's log-probs; None: 1e-4 in float32, 0.1 in bfloat16."""
