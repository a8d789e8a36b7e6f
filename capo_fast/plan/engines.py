"""The engines of a job (the policy's, or the critic's server of each host): memory of a device, and seconds of a step's
sequences by a roofline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from capo_fast.config.schema import EngineConfig
from capo_fast.plan.hardware import GEMMS, GIB, MEMORY, Hardware
from capo_fast.plan.shapes import ModelShape

BYTES = {"bfloat16": 2, "float32": 4}


class Answers(NamedTuple):
    """Answers of all engines: tokens of a prompt, of the mean answer and of the longest one."""

    number: int
    prompt: int
    mean: int
    longest: int


@dataclass(frozen=True)
class Engines:
    """Equal engines of one model."""

    shape: ModelShape
    config: EngineConfig
    device: Hardware
    """Device of each of the `config.tensor_parallel` ranks of an engine"""
    count: int
    sequences: int
    """Sequences of a step over all engines, rollouts or critiques"""

    @property
    def bytes(self) -> int:
        """Bytes of a number in `config.dtype`."""
        return BYTES[self.config.dtype]

    # ---- bytes of a device ----

    @property
    def weights(self) -> float:
        """Weights; on a CPU vLLM also keeps a packed copy of layers and head."""
        shape = self.shape
        packed = shape.layers * shape.layer + shape.head if self.device.on_cpu else 0
        return (shape.total + packed) * self.bytes / self.config.tensor_parallel

    @property
    def cache(self) -> float:
        return self.config.kv_cache_gb * GIB

    @property
    def cache_per_token(self) -> float:
        """Bytes of keys and values per token."""
        slices = min(self.config.tensor_parallel, self.shape.kv_heads)
        return 2 * self.shape.layers * self.shape.key * self.bytes / slices

    @property
    def workspace(self) -> float:
        """[us] Logits of a batch in float32 with the tensors of sampling (five times as much), and CUDA graphs."""
        sequences = min(self.config.max_num_seqs, -(-self.sequences // self.count))
        return 5 * 4 * sequences * self.shape.vocab + (0 if self.device.on_cpu else GIB)

    # ---- seconds ----

    def answer(self, answers: Answers, prompts: int) -> float:
        """prompts: tokens of all prompts, shared ones once."""
        return self.prefill(prompts) + self.decode(answers)

    def prefill(self, tokens: int) -> float:
        """Prefill on all engines: two FLOPs per parameter and token."""
        rate = self.count * self.config.tensor_parallel * self.device.flops(self.config.dtype)
        return 2 * self.shape.total * tokens / (rate * GEMMS)

    def decode(self, answers: Answers) -> float:
        """A full batch until the mean length of the last answers, then the longest answer alone."""
        mine = -(-answers.number // self.count)
        running = self._running(answers)
        full = self._step(running, answers.prompt + answers.mean / 2)
        alone = self._step(1, answers.prompt + answers.longest)
        return mine / running * answers.mean * full + max(0, answers.longest - answers.mean) * alone

    def _running(self, answers: Answers) -> float:
        """Sequences that one engine decodes at once: limited by its settings and its cache."""
        held = self.cache / self.cache_per_token / (answers.prompt + answers.mean)
        return max(1, min(-(-answers.number // self.count), self.config.max_num_seqs, held))

    def _step(self, sequences: float, context: float) -> float:
        """One token per sequence: reads the weights and the cache, and takes two FLOPs per parameter and sequence."""
        read = self.weights + sequences * context * self.cache_per_token
        flops = 2 * self.shape.total * sequences / self.config.tensor_parallel
        speed = self.device.flops(self.config.dtype) * GEMMS
        return self.device.engine_step_s + max(read / (self.device.bandwidth * MEMORY), flops / speed)
