"""The settings of `capo sft`: sections of `Config` that fine-tuning reads, and its own data, batches and rules."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from capo_fast.config.rules import PARTS, check_parts
from capo_fast.config.schema import Config
from capo_fast.config.sections import DataConfig, LoraConfig, ModelConfig, PolicyConfig, RolloutConfig, RunConfig
from capo_fast.config.training import CheckpointConfig, EvalConfig, TrainConfig
from capo_fast.config.types import STRICT, FilePath, MayChange
from capo_fast.errors import ConfigError


@dataclass(frozen=True, config=STRICT)
class SftDataConfig(DataConfig):
    path: FilePath | None = None
    """Rows: a JSONL, JSONL.gz or Parquet file, a saved dataset's folder, or a Hugging Face dataset id. chat: rows with
    `messages`, or with a prompt and its answer. critic: with `problem`, `steps` and `wrong_steps` (all of them) or
    `first_wrong_step`."""
    messages_field: str = "messages"
    """chat: field of a conversation, a list of messages (role, content). Each message of the assistant is an answer."""
    prompt_field: str = "prompt"
    """chat, for rows without a conversation: field of the question, text or a list of messages."""
    answer_field: str = "completion"
    """chat: field of the answer to that prompt."""
    system_prompt: str | None = DataConfig.system_prompt
    """chat: system message of every conversation that has none; None: no system message."""
    critic_prompt: FilePath = "pkg://capo_fast.credit/prompts/genprm.txt"
    """critic: Jinja2 template file of the critic's prompt, the same that training will use (critic.prompt)."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """Examples of more than data.max_tokens tokens: refuse the run, or drop and count."""
    max_tokens: Annotated[int, Field(gt=1)] | None = None
    """Longest example, in tokens; None: the positions of the model."""
    limit: PositiveInt | None = None
    """Only the first N rows."""


@dataclass(frozen=True, config=STRICT)
class SftTrainConfig(TrainConfig):
    steps: MayChange[NonNegativeInt] = 0
    """Updates; 0: all updates of train.epochs, which is also the maximum."""
    epochs: PositiveInt = 1
    """Passes over the examples, each in a different order."""
    batch: PositiveInt = 80
    """Examples per update."""
    batch_tokens: PositiveInt | None = None
    """Tokens per update, prompts included, in place of a number of examples: as many examples in their order as fit, at
    least one."""
    lr: NonNegativeFloat = 1e-5
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning rate after the warm-up, over all updates."""


@dataclass(frozen=True, config=STRICT)
class SftEvalConfig(EvalConfig):
    path: FilePath | None = None
    """Held-out rows, in the format of data.path. Training skips rows with one of their problems."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Without eval.path: share of data.path's problems that is held out, with all their rows."""
    every: MayChange[NonNegativeInt] = 0
    """Compute the held-out loss every N steps and at the first and last; 0: only those two."""
    limit: PositiveInt | None = None
    """Only the first N rows of eval.path."""


@dataclass(frozen=True, config=STRICT)
class SftConfig:
    """The defaults of batch and learning rate are the paper's for its base models."""

    UNUSED: ClassVar = (
        *("policy.old", "run.keep_rollouts", "data.id_field", "data.solution_field"),
        *("train.minibatches", "train.truncated", "train.overlong_buffer", "train.dynamic_sampling"),
        *("train.max_rounds", "eval.n", "eval.temperature", "eval.top_p"),
    )
    """Settings of the shared sections that don't apply without rollouts."""

    task: Literal["chat", "critic"] = "chat"
    """chat: answers of conversations. critic: verdicts on labelled solutions, in the form of the critic's prompts and
    answers."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the order of examples, of the held-out split, and of a LoRA adapter."""
    resume: MayChange[Literal["auto", "never"]] = "auto"
    """auto: resume from the newest checkpoint in run.dir, if any; never: start from step 0 and rename an old folder."""
    run: MayChange[RunConfig] = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: SftDataConfig = field(default_factory=SftDataConfig)
    train: SftTrainConfig = field(default_factory=SftTrainConfig)
    eval: SftEvalConfig = field(default_factory=SftEvalConfig)
    checkpoint: MayChange[CheckpointConfig] = field(default_factory=lambda: CheckpointConfig(every=100))

    @property
    def algorithm(self) -> str:
        """The name of the kind of run."""
        return "sft" if self.task == "chat" else f"sft-{self.task}"

    @property
    def input_paths(self) -> dict[str, str | None]:
        """The paths of this run's inputs by their setting."""
        prompt = self.data.critic_prompt if self.task == "critic" else None
        paths = {"data.path": self.data.path, "eval.path": self.eval.path, "model.path": self.model.path}
        return paths | {"data.critic_prompt": prompt}

    @property
    def learning(self) -> Config:
        """The `Config` for the learner, the log and the export: one update per step, one pass each."""
        names = ("steps", "lr", "betas", "weight_decay", "warmup_steps", "schedule", "grad_clip", "micro_tokens")
        limits = ("optimizer", "offload_optimizer", "max_bad_updates", "profile", "stage_timeout_s")
        train = TrainConfig(epochs=1, **{name: getattr(self.train, name) for name in (*names, *limits)})
        return Config(
            seed=self.seed,
            run=self.run,
            model=self.model,
            policy=self.policy,
            lora=self.lora,
            data=self.data,
            rollout=RolloutConfig(temperature=1.0),  # the temperature of log-probs
            train=train,
            eval=EvalConfig(path=self.eval.path, every=self.eval.every, limit=self.eval.limit),
            checkpoint=self.checkpoint,
        )


def validate_sft(config: SftConfig) -> SftConfig:
    """Returns the configuration, or raises a ConfigError about the first broken rule."""
    names = ["data", "templates", *(name for name in ("lora", "offload") if PARTS[name].used(config.learning))]
    check_parts(config.learning, [PARTS[name] for name in names])
    held = config.eval
    if held.path and held.share:
        raise ConfigError(f"eval.share: found {held.share:g}, wanted 0 with eval.path ({held.path})")
    return config
