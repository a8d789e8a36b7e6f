"""Every setting of a run: one tree of frozen dataclasses whose defaults are the paper's CAPO set-up."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from capo_fast.config.credit import CreditConfig
from capo_fast.config.critic import CriticConfig, EndpointConfig
from capo_fast.config.sections import (
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
)
from capo_fast.config.training import (
    CheckpointConfig,
    EvalConfig,
    LossConfig,
    ReferenceConfig,
    SyncConfig,
    TrainConfig,
)
from capo_fast.config.types import STRICT, MayChange


@dataclass(frozen=True, config=STRICT)
class Config:
    UNUSED: ClassVar = ("critic.replaced",)
    """Fields that are no settings."""

    algorithm: Literal["capo", "capo-gated", "grpo", "grpo_genorm", "dr_grpo", "dapo", "gspo", "cispo", "prefix"] = (
        "capo"
    )
    """Named algorithm: sets its own keys, each of which may be overridden."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random draws of the run."""
    resume: MayChange[Literal["auto", "never"]] = "auto"
    """auto: resume from the newest checkpoint in run.dir, if any; never: start from step 0 and rename an old folder."""
    run: MayChange[RunConfig] = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    reference: MayChange[ReferenceConfig] = field(default_factory=ReferenceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: MayChange[CheckpointConfig] = field(default_factory=CheckpointConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)

    @property
    def resolved_std_floor(self) -> float:
        """credit.std_floor, with None resolved: the smallest std by which advantages are divided."""
        if self.credit.std_floor is not None:
            return self.credit.std_floor
        return 0.25 if self.algorithm in ("capo", "capo-gated") and self.credit.norm == "group-sequence" else 0.0

    @property
    def resolved_overlong_buffer(self) -> int:
        """train.overlong_buffer, with 0 resolved to DAPO's fifth of the longest answer: tokens of the penalty ramp."""
        return self.train.overlong_buffer or max(1, self.rollout.max_tokens // 5)

    @property
    def has_critic(self) -> bool:
        """Whether a critic reads rollouts."""
        return self.credit.process in ("steps", "prefix", "outcome", "critique-ratio", "flawed-answers")

    @property
    def merges(self) -> bool:
        """Whether the LoRA adapter is merged into the engine's base; `with_merging` resolves `auto`."""
        return self.lora.rank > 0 and self.engine.merge_lora is True

    @property
    def swaps(self) -> bool:
        """Whether the critic's weights replace the policy's in the engine."""
        return self.has_critic and self.critic.mode == "frozen" and (self.lora.rank == 0 or self.merges)

    @property
    def asks_server(self) -> bool:
        """Whether critiques come from a server, external or started by the run."""
        return self.has_critic and self.critic.at_server

    @property
    def serves_critic(self) -> bool:
        """Whether the run starts the critic's server, whose engine takes turns with the policy's on their devices."""
        return self.has_critic and self.critic.mode == "server"

    @property
    def input_paths(self) -> dict[str, str | None]:
        """The paths of this run's inputs by their setting; None for inputs that it does not read."""
        return {
            "data.path": self.data.path,
            "eval.path": self.eval.path,
            "model.path": self.model.path,
            "critic.path": self.critic.path if self.swaps or self.serves_critic else None,
            "critic.prompt": self.critic.prompt if self.has_critic else None,
        }

    @property
    def chooses(self) -> bool:
        """Whether the critic's requests depend on verdicts."""
        return self.has_critic and (self.credit.when != "always" or self.critic.gate.waits)

    @property
    def judges_as_one(self) -> bool:
        """Whether a critique has a single verdict, about a whole solution or one step."""
        return self.credit.process == "outcome" or self.critic.reads == "step"

    @property
    def streams(self) -> bool:
        """Whether critiques run concurrently with rollouts: they need no verdict first, no other weights in the engine,
        and no other engine on its devices."""
        return self.critic.stream and not self.chooses and not self.swaps and not self.serves_critic

    @property
    def has_old_logprobs(self) -> bool:
        """Whether a batch gets several updates; their ratio is relative to the policy before the first."""
        return self.train.epochs * self.train.minibatches > 1

    @property
    def used_loss(self) -> LossConfig:
        """`loss` without the bounds that its objective and its importance sampling don't use."""
        loss = self.loss
        return replace(
            loss,
            dual_clip=loss.dual_clip if loss.objective == "ppo" else None,
            is_low=loss.is_low if loss.is_mode == "mask" else 0.0,
        )


def with_merging(config: Config, on_cpu: bool) -> Config:
    """The configuration with `engine.merge_lora: auto` resolved: vLLM's LoRA kernels are slow on a CPU."""
    if config.engine.merge_lora != "auto":
        return config
    return replace(config, engine=replace(config.engine, merge_lora=on_cpu))
