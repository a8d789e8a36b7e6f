"""The planned job: a configuration, a model's shape and named hardware; and the work of one step.

Letters: N packed tokens, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from capo_fast.config.schema import Config, EngineConfig
from capo_fast.engine.tensor_parallel import check_divides, most_slices
from capo_fast.errors import ConfigError
from capo_fast.plan.engines import BYTES, Engines
from capo_fast.plan.hardware import Hardware
from capo_fast.plan.shapes import ModelShape
from capo_fast.policy.optimizer import check_grain
from capo_fast.policy.work import Passes

QUERYING = ("answer-probability", "step-values", "critique-ratio")
"""Values of credit.process whose estimators query the policy."""
STEPS = 10
"""[us] Steps of a rollout."""
TEMPLATE = 300
"""[us] Tokens of a critic's prompt besides the problem and the solution."""

TYPICAL_PROMPT = 256
"""[us] Mean tokens of a prompt, if there is room for as many."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a step's sequences. The longest response has rollout.max_tokens [us]."""

    prompt: int
    response: int
    critique: int


@dataclass(frozen=True)
class Job:
    """A run on `ranks` devices of `hosts` hosts."""

    config: Config
    shape: ModelShape
    hardware: Hardware
    ranks: int
    hosts: int
    lengths: Lengths
    critic: ModelShape | None = None
    """Model of `critic.mode: server`, which takes turns with the policy's engine on the same devices"""
    packed: tuple[int, int] | None = None
    """(N, T) of the largest micro-batch; None: from the settings"""

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that a run rejects too."""
        if self.ranks % self.hosts:
            raise ConfigError(f"--nodes: found {self.hosts}, wanted a divisor of --gpus ({self.ranks})")
        self._check_engines()
        self._check_shards()
        self._check_models()

    def _check_engines(self) -> None:
        here, slices, engines = self.here, self.config.engine.tensor_parallel, self.config.engine.ranks
        if (engines or self.ranks) % slices or self.ranks <= engines:
            raise ConfigError(
                f"engine.tensor_parallel: found {slices} with engine.ranks: {engines} on {self.ranks} devices, wanted "
                "a divisor of the ranks with engines, and ranks that learn"
            )
        first_ranks = range(self.ranks - engines if engines else 0, self.ranks, slices)
        if any(first // here != (first + slices - 1) // here for first in first_ranks):
            raise ConfigError(
                f"engine.tensor_parallel: found {slices} on hosts of {here} devices, wanted each engine on one host"
            )
        if self.asks_policy:
            from capo_fast.loaders import check_may_ask  # takes a second, and most jobs don't need it

            check_may_ask(f"credit.process: {self.config.credit.process}", self.config)

    def _check_shards(self) -> None:
        here = self.here
        if self.config.policy.shard == "node" and self.learners > here and self.learners % here:
            raise ConfigError(
                f"policy.shard: found node with {self.learners} ranks that learn on hosts of {here}, wanted equal "
                "numbers on every host, or all"
            )
        if self.config.train.optimizer == "adamw-8bit":
            check_grain(self.shards)

    def _check_models(self) -> None:
        engine, server = self.config.engine, self.config.critic.server
        _check_model(self.shape, engine.max_model_len, engine.tensor_parallel, "engine")
        if self.critic is not None:
            most = 1 if self.hardware.on_cpu else self.here
            if (wanted := server.tensor_parallel or 1) > most:
                raise ConfigError(
                    f"critic.server.tensor_parallel: found {wanted}, wanted at most {most}, the devices of a host"
                )
            _check_model(self.critic, server.max_model_len, wanted, "critic.server")

    def with_settings(self, **values: object) -> Job:
        """The same job with other settings, by their keys: `policy__dtype="float32"` is policy.dtype."""
        config = self.config
        for key, value in values.items():
            config = _with(config, key.replace("__", ".").split("."), value)
        return replace(self, config=config)

    # ---- roles of the devices ----

    @property
    def here(self) -> int:
        """Devices of a host."""
        return self.ranks // self.hosts

    @property
    def learners_here(self) -> int:
        """Ranks that learn on the host with most of them."""
        return min(self.learners, self.here)

    @property
    def asks_policy(self) -> bool:
        """True if the estimator of credit.process queries the policy's engine; unknown for a credit.fn."""
        return self.config.credit.fn is None and self.config.credit.process in QUERYING

    @property
    def writes_critiques(self) -> bool:
        """True if the policy's engines write critiques."""
        return self.config.has_critic and not self.config.asks_server

    @property
    def critics(self) -> Engines | None:
        """The engines that write critiques on these devices; None if there are no critiques, or others write them."""
        return self.engines if self.writes_critiques else self.servers

    @property
    def separate_engines(self) -> bool:
        """True if engines and learner are on different ranks."""
        return self.config.engine.ranks > 0

    @property
    def learners(self) -> int:
        return self.ranks - self.config.engine.ranks

    @property
    def engines(self) -> Engines:
        """The policy's engines, with their sequences: rollouts, or critiques if there are more."""
        config = self.config.engine
        count = (config.ranks or self.ranks) // config.tensor_parallel
        sequences = self.rollouts * (self.critiques_each if self.writes_critiques else 1)
        return Engines(self.shape, config, self.device, count, sequences)

    @property
    def servers(self) -> Engines | None:
        """The critic's servers, one per host; None without. On a CPU a server has the whole host."""
        if self.critic is None:
            return None
        own = self.config.critic.server
        devices = 1 if self.device.on_cpu else self.here
        config = EngineConfig(
            dtype=own.dtype,
            max_model_len=own.max_model_len,
            max_num_seqs=self.engines.count // self.hosts * self.config.endpoint.concurrency,
            kv_cache_gb=own.kv_cache_gb,
            tensor_parallel=own.tensor_parallel or most_slices(self.critic.sizes, devices),
        )
        return Engines(self.critic, config, self.hardware, self.hosts, self.rollouts * self.critiques_each)

    @property
    def shards(self) -> int:
        """Ranks over which the policy is sharded."""
        return self.learners if self.config.policy.shard == "all" else self.learners_here

    @cached_property
    def device(self) -> Hardware:
        """The device of one rank; the ranks on a CPU share it."""
        whole = self.hardware
        if not whole.on_cpu:
            return whole
        share, (narrow, wide) = self.here, whole.peaks
        return replace(
            whole, memory=whole.memory / share, bandwidth=whole.bandwidth / share, peaks=(narrow / share, wide / share)
        )

    @property
    def learner_link(self) -> float:
        """Bytes per second between the ranks with the shards of one copy."""
        return self.device.network if self.shards > self.here else self.device.link

    # ---- the policy ----

    @property
    def compute_bytes(self) -> int:
        return BYTES[self.config.policy.dtype]

    @property
    def is_lora(self) -> bool:
        return self.config.lora.rank > 0

    @property
    def trained(self) -> int:
        """Parameters that the optimizer updates."""
        return self.shape.adapter(self.config.lora) if self.is_lora else self.shape.total

    @property
    def has_reference(self) -> bool:
        """True if a second copy of the weights is kept."""
        return self.config.loss.kl_coef > 0 and not self.is_lora

    @property
    def recomputed(self) -> int:
        """Decoder layers recomputed in the backward pass."""
        every = int(self.config.policy.gradient_checkpointing)
        return -(-self.shape.layers // every) if every else 0

    # ---- the work of a step ----

    @property
    def rollouts(self) -> int:
        return self.config.rollout.prompts * self.config.rollout.n

    @property
    def judged_each(self) -> int:
        """Parts of a rollout that are criticised separately: the whole, or each step."""
        return STEPS if self.config.critic.reads == "step" else 1

    @property
    def critiques_each(self) -> int:
        """Critiques of a rollout if none is shared or left out."""
        return self.judged_each * self.config.critic.votes

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return min(self.lengths.prompt + self.config.rollout.max_tokens, self.config.engine.max_model_len)

    def passes(self, count: int = 1) -> Passes:
        """`count` passes over a step's rollouts, on all ranks."""
        prompts, n = self.config.rollout.prompts, self.config.rollout.n
        prompt, response = self.lengths.prompt, self.lengths.response
        pairs = prompt**2 / 2 + n * (response * prompt + response**2 / 2)
        tokens = prompts * (prompt + n * (response - 1))
        return Passes(count * tokens, count * self.rollouts * response, count * prompts * pairs)

    @property
    def forwards(self) -> int:
        """Forward-only passes: old log-probs and the reference."""
        old = self.config.has_old_logprobs and self.config.policy.old == "trainer"
        return int(old) + int(self.config.loss.kl_coef > 0)

    @property
    def updates(self) -> int:
        return self.config.train.epochs * self.config.train.minibatches

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one rank per update, with responses of mean length."""
        tokens = self.passes().tokens / self.config.train.minibatches / self.learners
        return max(1, -(-int(tokens) // self.config.train.micro_tokens))

    @property
    def micro(self) -> tuple[int, int]:
        """(N, T) of the largest micro-batch: full, but at most a rank's rollouts with longest responses."""
        if self.packed:
            return self.packed
        rollout = self.config.rollout
        most = rollout.prompts * (self.lengths.prompt + rollout.n * rollout.max_tokens)
        share = -(-most // (self.config.train.minibatches * self.learners))
        tokens = max(self.longest, min(self.config.train.micro_tokens, share))
        return tokens, tokens


def _with(settings: Any, path: Sequence[str], value: object) -> Any:
    """The settings with the value at this path of names replaced."""
    name, *rest = path
    return replace(settings, **{name: _with(getattr(settings, name), rest, value) if rest else value})


def _check_model(shape: ModelShape, tokens: int, slices: int, section: str) -> None:
    """Raises ConfigError if a model can't be sliced so, or has too few positions. section: of the settings."""
    check_divides(shape.sizes, slices, f"{section}.tensor_parallel")
    if shape.positions is not None and tokens > shape.positions:
        raise ConfigError(
            f"{section}.max_model_len: found {tokens}, wanted at most {shape.positions}, the positions of {shape.name}"
        )


def fewest_hosts(devices: int, per_host: int) -> int:
    """The fewest hosts that have equal numbers of these devices, at most `per_host` each.

    >>> [fewest_hosts(devices, 8) for devices in (8, 16, 9, 11)]
    [1, 2, 3, 11]
    """
    return next(hosts for hosts in range(-(-devices // per_host), devices + 1) if devices % hosts == 0)
