"""Policy weights -> engine, with a canary after every push.

Two things must agree between trainer and engine, else the run stops with both numbers: a checksum of every weight as
the engine computes with it, and the log-probs of a fixed probe batch. So TRL's reload of the base model after a sync
(trl#5312) is caught, and an old packed head of vLLM's CPU kernels where a tied head is not pushed as well.

Weights are summed up as they are pushed, in one pass, and all sums are read at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from capo_fast.config.schema import Config
from capo_fast.engine.base import Engine
from capo_fast.engine.checksum import checksum_of_rows, row_sums
from capo_fast.errors import CapoError, ConfigError
from capo_fast.policy.batch import pack_tokens
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
from capo_fast.records import Prompt
from capo_fast.runtime.files import passing_folder
from capo_fast.runtime.ranks import once_a_node

CHECKSUM_TOLERANCE = 1e-9
"""Of the norm of a weight's row sums: both sides sum the same rounded numbers in float64."""

LOGPROB_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Mean |difference| of the probe's log-probs, in nats, by the coarser dtype of trainer and engine."""

Sums = dict[str, tuple[float, float]]
"""Of each weight, by name: its checksum, and the norm of its `row_sums`."""


class SyncError(CapoError):
    """Trainer and engine don't hold the same weights."""


@dataclass(frozen=True)
class FrozenCritic:
    """The critic's weights, on the host in `engine.dtype` by Hugging Face name, and its log-probs of the probe."""

    weights: Mapping[str, torch.Tensor]
    probe_logprobs: torch.Tensor


def allowed_gap(config: Config) -> float:
    """Largest mean |difference| of the probe's log-probs, nats."""
    coarser = "bfloat16" if "bfloat16" in (config.engine.dtype, config.policy.dtype) else "float32"
    return config.sync.max_logprob_gap or LOGPROB_TOLERANCE[coarser]


class Canary:
    """Compares the engine with the trainer."""

    def __init__(self, engine: Engine, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        self._engine = engine
        self._probe = probe
        self._limit = allowed_gap(config)

    def check_weights(self, wanted: Sums) -> None:
        """Raises SyncError with the first weight that is another in the engine, or only on one side."""
        found = self._engine.checksums()
        for name in wanted | found:
            ours, norm = wanted.get(name, (math.nan, math.nan))
            if not abs(found.get(name, math.nan) - ours) <= CHECKSUM_TOLERANCE * norm:
                raise SyncError(
                    f"sync canary: {name} has checksum {ours:.9g} in the trainer and "
                    f"{found.get(name, math.nan):.9g} in the engine"
                )

    def check_probe(self, policy: torch.Tensor, base: torch.Tensor | None = None) -> None:
        """Raises SyncError where the engine's log-probs of the probe are too far from the trainer's.

        Policy and base are asked in one batch, as rollouts and critiques are.
        """
        count = len(self._probe)
        if base is None:
            self._compare("", policy, self._engine.score(self._probe))
            return
        scores = self._engine.score([*self._probe, *self._probe], base=[i >= count for i in range(2 * count)])
        self._compare("", policy, scores[:count])
        self._compare(" under the base", base, scores[count:])

    def _compare(self, where: str, ours: torch.Tensor, scores: Sequence[Sequence[float]]) -> None:
        theirs = torch.tensor([logprob for sequence in scores for logprob in sequence])
        gap = (ours - theirs).abs().mean().item()
        if not gap <= self._limit:
            raise SyncError(
                f"sync canary: the probe's mean log-prob{where} is {ours.mean():.6f} in the trainer and "
                f"{theirs.mean():.6f} in the engine (mean difference {gap:.2g}, at most {self._limit:.2g} is allowed)"
            )


class CriticPush:
    """Puts a frozen critic's weights in place of all that an engine holds."""

    def __init__(self, engine: Engine, critic: FrozenCritic, canary: Canary) -> None:
        self._engine, self._critic, self._canary = engine, critic, canary
        self._sums = _sums(critic.weights.items())

    def push(self) -> None:
        """Raises SyncError."""
        self._engine.load(iter(self._critic.weights.items()))
        self._canary.check_weights(self._sums)
        self._canary.check_probe(self._critic.probe_logprobs)


class Sync(ABC):
    """Decides whose weights the engine answers with."""

    def __init__(self, engine: Engine, learner: Learner, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        self._engine = engine
        self._learner = learner
        self._dtype = DTYPES[config.engine.dtype]
        self._canary = Canary(engine, probe, config)
        self._batch = pack_tokens([(tokens[:1], tokens[1:]) for tokens in probe]).to(learner.device)
        self._held: tuple[str, int] | None = None

    def hold(self, what: Literal["policy", "critic"], version: int) -> None:
        """Make the engine answer with the policy of this version, or with the critic. A collective on all ranks.

        Idempotent: weights that the engine holds are not pushed again. The critic has one version. Raises SyncError.
        """
        wanted = (what, version if what == "policy" else 0)
        if self._held == wanted:
            # A resumed run would not have the prefixes cached since, and so not the same bits.
            self._engine.forget_prefixes()
        elif what == "policy":
            self._held = None
            self.push_policy()
            self._held = wanted
        elif self.push_critic():
            self._held = wanted

    def release(self) -> None:
        """Give the engine's memory back until the next `hold`."""
        self._engine.sleep()
        self._held = None

    def trainer_logprobs(self, base: bool = False) -> torch.Tensor:
        """The trainer's log-probs of the probe, by the policy or by its frozen base. A collective."""
        return self._learner.logprobs_at(self._batch, temperature=1.0, base=base).cpu()

    @abstractmethod
    def push_policy(self) -> None:
        """Push the policy as it is now. A collective on all ranks. Raises SyncError."""

    @abstractmethod
    def push_critic(self) -> bool:
        """Push the critic; False where its weights never take the policy's place. Raises SyncError."""


class FullSync(Sync):
    """Pushes the policy, or the frozen critic, into one engine: all weights, in place of those that were there."""

    def __init__(
        self,
        engine: Engine,
        learner: Learner,
        critic: FrozenCritic | None,
        probe: Sequence[tuple[int, ...]],
        config: Config,
    ) -> None:
        """critic: None where the engine never holds one."""
        super().__init__(engine, learner, probe, config)
        self._critic = CriticPush(engine, critic, self._canary) if critic else None

    def push_policy(self) -> None:
        pushed = Watched(full_weights(self._learner.policy, self._dtype))
        self._engine.load(iter(pushed))
        self._canary.check_weights(pushed.sums())
        self._canary.check_probe(self.trainer_logprobs())

    def push_critic(self) -> bool:
        if self._critic is None:
            return False
        self._critic.push()
        return True


class AdapterSync(Sync):
    """Pushes the policy's LoRA adapter into an engine that holds the base, which stays and is the critic."""

    def __init__(self, engine: Engine, learner: Learner, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        """A collective: the base is summed up once, since nothing changes it in the trainer."""
        super().__init__(engine, learner, probe, config)
        self._base = _sums(base_weights(learner.policy, self._dtype))
        self._base_logprobs = self.trainer_logprobs(base=True)

    def push_policy(self) -> None:
        model, adapter = self._learner.policy.model, adapter_weights(self._learner.policy)
        self._engine.load_adapter(adapter_files(model, adapter))
        sums = _sums(scaled_adapter(model, adapter, self._dtype))
        self._canary.check_weights(self._base | sums)
        self._canary.check_probe(self.trainer_logprobs(), self._base_logprobs)

    def push_critic(self) -> bool:
        return False


class MergedSync(Sync):
    """Pushes the policy's LoRA adapter merged into the base, or the base, which is the critic: the adapted weights
    alone, into an engine that was started with the base."""

    def __init__(self, engine: Engine, learner: Learner, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        """A collective: the base is summed up once, since nothing changes it in the trainer."""
        super().__init__(engine, learner, probe, config)
        self._swaps = config.swaps
        self._names = engine.fused_with(adapted_weights(learner.policy.model))
        self._base = _sums(base_weights(learner.policy, self._dtype))
        self._base_logprobs = self.trainer_logprobs(base=True)

    def push_policy(self) -> None:
        pushed = Watched(merged_weights(self._learner.policy, self._dtype, self._names))
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
    """At most `count` sequences of `tokens` tokens: the ends of the first prompts, short ones joined."""
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

    `load` gives it as a plain transformers model, on the first rank of a node alone. That rank writes the weights to a
    file, all ranks of the node map its pages, and the file's name goes at once.
    """
    with ExitStack() as stack:
        path, logprobs = once_a_node(lambda: _write_critic(load(), probe, dtype, stack))
        try:
            return FrozenCritic(load_file(path), logprobs)
        finally:
            dist.barrier()


def _write_critic(
    model: Any, probe: Sequence[tuple[int, ...]], dtype: torch.dtype, stack: ExitStack
) -> tuple[Path, torch.Tensor]:
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # the probe is scored on the host, where flash attention can't run
    logprobs = torch.cat([_logprobs(model, sequence) for sequence in probe])
    model.set_attn_implementation(attention)
    weights = {name: weight.to(dtype, copy=True) for name, weight in model.state_dict().items()}
    folder = stack.enter_context(passing_folder(sum(weight.nbytes for weight in weights.values())))
    save_file(weights, folder / "critic.safetensors")
    return folder / "critic.safetensors", logprobs


def _logprobs(model: Any, sequence: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([sequence])
    logits = model(ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def check_same_architecture(critic: Mapping[str, Any], policy: Mapping[str, Any]) -> None:
    """Raise ConfigError with the first entry in which a critic's config differs from that of the policy.

    They share one engine. Entries that don't enter the arithmetic (names, dtype, token ids, versions) may differ.
    """
    for name in [*policy, *critic]:
        theirs, ours = critic.get(name), policy.get(name)
        if theirs != ours and not name.startswith("_") and not name.endswith(INESSENTIAL):
            raise ConfigError(f"critic.path: its {name} is {theirs}, want the policy's {ours}: they share one engine")


INESSENTIAL = ("dtype", "_token_id", "_version", "use_cache", "architectures", "initializer_range", "_dropout")


class Watched:
    """Weights by name, each summed up as it passes."""

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._weights = weights
        self._found: dict[str, torch.Tensor] = {}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in self._weights:
            sums_N = row_sums(weight)
            self._found[name] = torch.stack([checksum_of_rows(sums_N), sums_N.norm()])
            yield name, weight

    def sums(self) -> Sums:
        """Of all that has passed, in one read."""
        if not self._found:
            return {}
        rows = torch.stack(list(self._found.values())).tolist()
        return {name: (checksum, norm) for name, (checksum, norm) in zip(self._found, rows, strict=True)}


def _sums(weights: Iterable[tuple[str, torch.Tensor]]) -> Sums:
    watched = Watched(weights)
    for _ in watched:
        pass
    return watched.sums()
