"""Policy weights -> engine, with a canary after every push.

Two things must agree between trainer and engine, else the run stops with both numbers: a checksum of every weight as
the engine computes with it, and the log-probs of a fixed probe batch. So TRL's reload of the base model after a sync
(trl#5312) is caught, and an old packed head of vLLM's CPU kernels where a tied head is not pushed as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from capo_fast.batch import pack
from capo_fast.config import Config, ConfigError
from capo_fast.engine.base import Engine, checksum
from capo_fast.learner import Learner
from capo_fast.policy import DTYPES, full_weights
from capo_fast.records import CreditedSample, Prompt, Rollout, Sample, StepSpans

CHECKSUM_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Of a weight's norm: what rounding in the engine's own matrix product can make of a checksum."""

LOGPROB_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Mean |difference| of the probe's log-probs, in nats."""


class SyncError(RuntimeError):
    """Trainer and engine don't hold the same weights."""


class Sync:
    """Pushes the policy, and the frozen critic, into one engine and knows which of them it holds."""

    def __init__(
        self,
        engine: Engine,
        learner: Learner,
        critic_weights: Mapping[str, torch.Tensor],
        prompts: Sequence[Prompt],
        config: Config,
    ) -> None:
        """critic_weights: Hugging Face names to tensors, on the host in `engine.dtype`; empty without a critic."""
        self.engine = engine
        self._learner = learner
        self._critic_weights = critic_weights
        self._config = config
        self._dtype = "float32" if config.engine.dtype == "float32" else "bfloat16"
        self._probe = probe_sequences(prompts, config.sync.probe_sequences, config.sync.probe_tokens)
        self._batch = pack([_as_sample(tokens) for tokens in self._probe], None, config).to(learner.device)
        self._holds: str | None = None

    def push_policy(self, version: int) -> None:
        """Make the engine hold this version of the policy. A collective on all ranks. Raises SyncError."""
        if self._holds == f"policy {version}":
            return
        self._push(full_weights(self._learner.policy, DTYPES[self._config.engine.dtype]))
        self._check_probe()
        self._holds = f"policy {version}"

    def push_critic(self) -> None:
        """Make the engine hold the frozen critic. Raises SyncError."""
        if self._holds != "critic":
            self._push(self._critic_weights.items())
            self._holds = "critic"

    def _push(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._holds = None
        pushed: dict[str, tuple[float, float]] = {}
        self.engine.load(_watched(weights, pushed))
        found = self.engine.checksums()
        for name, (wanted, norm) in pushed.items():
            if not abs(found.get(name, float("nan")) - wanted) <= CHECKSUM_TOLERANCE[self._dtype] * norm:
                raise SyncError(
                    f"sync canary: {name} has checksum {wanted:.9g} in the trainer and "
                    f"{found.get(name, float('nan')):.9g} in the engine"
                )

    def _check_probe(self) -> None:
        ours = self._learner.logprobs_at(self._batch, temperature=1.0).cpu()
        theirs = torch.tensor([logprob for sequence in self.engine.score(self._probe) for logprob in sequence])
        gap = (ours - theirs).abs().mean().item()
        limit = self._config.sync.max_logprob_gap or LOGPROB_TOLERANCE[self._dtype]
        if not gap <= limit:
            raise SyncError(
                f"sync canary: the probe's mean log-prob is {ours.mean():.6f} in the trainer and {theirs.mean():.6f} "
                f"in the engine (mean difference {gap:.2g}, at most {limit:.2g} is allowed)"
            )


def probe_sequences(prompts: Sequence[Prompt], count: int, tokens: int) -> list[tuple[int, ...]]:
    """The last `tokens` tokens of the first `count` prompts."""
    return [prompt.token_ids[-tokens:] for prompt in prompts[:count] if len(prompt.token_ids) > 1]


def check_same_architecture(critic: Mapping[str, torch.Tensor], policy: Mapping[str, torch.Tensor]) -> None:
    """Raise ConfigError with the first weight in which a critic differs from the policy whose engine it shares."""
    for name in [*policy, *critic]:
        shapes = [tuple(side[name].shape) if name in side else "none" for side in (critic, policy)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"critic.path: {name} has shape {shapes[0]}, want the policy's {shapes[1]}: they share one engine"
            )


def _watched(
    weights: Iterable[tuple[str, torch.Tensor]], pushed: dict[str, tuple[float, float]]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights:
        pushed[name] = checksum(weight), weight.float().norm().item()
        yield name, weight


def _as_sample(tokens: tuple[int, ...]) -> CreditedSample:
    """A probe sequence in the form that `pack` takes: its first token is the prompt."""
    length = len(tokens) - 1
    steps = StepSpans(starts=(False,) * length, texts=())
    prompt = Prompt(id="probe", problem="", answer="", solution=None, token_ids=tokens[:1])
    rollout = Rollout(prompt, 0, 0, 0, tokens[1:], (0.0,) * length, "", True, steps)
    sample = Sample(rollout, outcome=0.0, critiques=(), step_wrong=())
    return CreditedSample(sample, True, 0.0, (), (0.0, 0.0, 0.0, 0.0), (0.0,) * length)
