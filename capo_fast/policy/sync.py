"""Pushes policy weights into the engine, with a canary after every push (`capo_fast.policy.canary`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from capo_fast.config.schema import Config
from capo_fast.engine.base import Engine
from capo_fast.errors import ConfigError
from capo_fast.policy.batch import pack_tokens
from capo_fast.policy.canary import Canary, Summed, sums_of
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import (
    adapted_weights,
    adapter_files,
    adapter_weights,
    base_weights,
    merged_weights,
    scaled_adapter,
)
from capo_fast.policy.model import DTYPES, full_weights
from capo_fast.policy.passing import pass_model
from capo_fast.records import Prompt
from capo_fast.runtime.ranks import once_a_node


@dataclass(frozen=True)
class FrozenCritic:
    """The critic's weights by Hugging Face name, on the host in `engine.dtype`, and its log-probs of the probe."""

    weights: Mapping[str, torch.Tensor]
    probe_logprobs: torch.Tensor


class CriticPush:
    """Replaces all weights of an engine by a frozen critic's."""

    def __init__(self, engine: Engine, critic: FrozenCritic, canary: Canary) -> None:
        self._engine, self._critic, self._canary = engine, critic, canary
        self._sums = sums_of(critic.weights.items())

    def push(self) -> None:
        """Raises SyncError."""
        self._engine.load(iter(self._critic.weights.items()))
        self._canary.check_weights(self._sums)
        self._canary.check_probe(self._critic.probe_logprobs)


class Sync(ABC):
    """Pushes the policy's or the critic's weights into the engine."""

    def __init__(self, engine: Engine, learner: Learner, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        self._engine = engine
        self._learner = learner
        self._dtype = DTYPES[config.engine.dtype]
        self._canary = Canary(engine, probe, config)
        self._batch = pack_tokens([(tokens[:1], tokens[1:]) for tokens in probe]).to(learner.device)
        self._held: tuple[str, int] | None = None

    def hold(self, what: Literal["policy", "critic"], version: int) -> None:
        """Make the engine answer with the policy of this version, or with the critic. A collective on all ranks.

        Idempotent: weights that the engine already has are not pushed again. The critic has one version. Raises
        SyncError.
        """
        wanted = (what, version if what == "policy" else 0)
        if self._held == wanted:
            # A resumed run would not have the prefixes cached since, and its bits would differ.
            self._engine.forget_prefixes()
        elif what == "policy":
            self._held = None
            self.push_policy()
            self._held = wanted
        elif self.push_critic():
            self._held = wanted

    def release(self) -> None:
        """Free the engine's memory until the next `hold`."""
        self._engine.sleep()
        self._held = None

    def trainer_logprobs(self, base: bool = False) -> torch.Tensor:
        """The trainer's log-probs of the probe, under the policy or its frozen base. A collective."""
        return self._learner.logprobs_at(self._batch, temperature=1.0, base=base).cpu()

    @abstractmethod
    def push_policy(self) -> None:
        """Push the policy as it is now. A collective on all ranks. Raises SyncError."""

    @abstractmethod
    def push_critic(self) -> bool:
        """Push the critic; returns False if its weights never replace the policy's. Raises SyncError."""


class FullSync(Sync):
    """Pushes the policy, or the frozen critic, into one engine and replaces all weights."""

    def __init__(
        self,
        engine: Engine,
        learner: Learner,
        critic: FrozenCritic | None,
        probe: Sequence[tuple[int, ...]],
        config: Config,
    ) -> None:
        """critic: None if the engine never has the critic's weights."""
        super().__init__(engine, learner, probe, config)
        self._critic = CriticPush(engine, critic, self._canary) if critic else None

    def push_policy(self) -> None:
        pushed = Summed(full_weights(self._learner.policy, self._dtype))
        self._engine.load(iter(pushed))
        self._canary.check_weights(pushed.sums())
        self._canary.check_probe(self.trainer_logprobs())

    def push_critic(self) -> bool:
        if self._critic is None:
            return False
        self._critic.push()
        return True


class AdapterSync(Sync):
    """Pushes the policy's LoRA adapter into an engine that keeps the base, which is also the critic."""

    def __init__(self, engine: Engine, learner: Learner, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        """A collective: computes the base's checksums once, since the base never changes in the trainer."""
        super().__init__(engine, learner, probe, config)
        self._base = sums_of(base_weights(learner.policy, self._dtype))
        self._base_logprobs = self.trainer_logprobs(base=True)

    def push_policy(self) -> None:
        model, adapter = self._learner.policy.model, adapter_weights(self._learner.policy)
        self._engine.load_adapter(adapter_files(model, adapter))
        sums = sums_of(scaled_adapter(model, adapter, self._dtype))
        self._canary.check_weights(self._base | sums)
        self._canary.check_probe(self.trainer_logprobs(), self._base_logprobs)

    def push_critic(self) -> bool:
        return False


class MergedSync(Sync):
    """Pushes only the adapted weights into an engine that was started with the base: the policy's LoRA adapter merged
    into the base or, for the critic, those of the base."""

    def __init__(self, engine: Engine, learner: Learner, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        """A collective: computes the base's checksums once, since the base never changes in the trainer."""
        super().__init__(engine, learner, probe, config)
        self._swaps = config.swaps
        self._names = engine.fused_with(adapted_weights(learner.policy.model))
        self._base = sums_of(base_weights(learner.policy, self._dtype))
        self._base_logprobs = self.trainer_logprobs(base=True)

    def push_policy(self) -> None:
        pushed = Summed(merged_weights(self._learner.policy, self._dtype, self._names))
        self._engine.load(iter(pushed))
        self._canary.check_weights(self._base | pushed.sums())
        self._canary.check_probe(self.trainer_logprobs())

    def push_critic(self) -> bool:
        if self._swaps:
            self._engine.load(base_weights(self._learner.policy, self._dtype, self._names))
            self._canary.check_weights(self._base)
            self._canary.check_probe(self._base_logprobs)
        return self._swaps


def probe_sequences(prompts: Sequence[Prompt], count: int, tokens: int) -> list[tuple[int, ...]]:
    """At most `count` sequences of `tokens` tokens: the last tokens of the first prompts; short prompts are joined."""
    found: list[tuple[int, ...]] = []
    joined: tuple[int, ...] = ()
    for prompt in prompts:
        joined = (*joined, *prompt.token_ids)[-tokens:]
        if len(joined) == tokens:
            found, joined = [*found, joined], ()
        if len(found) == count:
            break
    return found or [joined]


@torch.no_grad()
def freeze_critic(load: Callable[[], Any], probe: Sequence[tuple[int, ...]], dtype: torch.dtype) -> FrozenCritic:
    """The critic's weights, once in the host memory of each node, with its own log-probs of the probe. A collective.

    `load` returns a plain transformers model; it is called only on the first rank of a node. That rank writes the
    weights to a file, all ranks of the node map its pages, and the file's name is deleted at once. Raises RecordError
    if it does not fit.
    """
    with ExitStack() as stack:
        path, names, logprobs = once_a_node(lambda: _write_critic(load(), probe, dtype, stack))
        try:
            weights = load_file(path)
        finally:
            dist.barrier()
        return FrozenCritic({name: weights[stored] for name, stored in names.items()}, logprobs)


def _write_critic(
    model: Any, probe: Sequence[tuple[int, ...]], dtype: torch.dtype, stack: ExitStack
) -> tuple[Path, dict[str, str], torch.Tensor]:
    model.set_attn_implementation("sdpa")  # the probe is scored on the host, where flash attention can't run
    logprobs = torch.cat([_logprobs(model, sequence) for sequence in probe])
    return *pass_model(model, dtype, stack), logprobs


def _logprobs(model: Any, sequence: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([sequence])
    logits = model(ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def check_same_architecture(critic: Mapping[str, Any], policy: Mapping[str, Any]) -> None:
    """Raise ConfigError with the first entry in which a critic's config differs from the policy's.

    They share one engine. Entries that don't change the computation (names, dtype, token ids, versions) may differ.
    """
    for name in [*policy, *critic]:
        theirs, ours = critic.get(name), policy.get(name)
        if theirs != ours and not name.startswith("_") and not name.endswith(IGNORED):
            raise ConfigError(f"critic.path: its {name} is {theirs}, want the policy's {ours}: they share one engine")


IGNORED = ("dtype", "_token_id", "_version", "use_cache", "architectures", "initializer_range", "_dropout")
