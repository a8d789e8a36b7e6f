"""The learner on a GPU, without an engine; a line of JSON per result.

    python -m bench.gpu.training gradients IMPL...    # of one packed batch in float32, against the reference on the CPU
    python -m bench.gpu.training micro-batch          # seconds, memory and host synchronisations, random model

Without a GPU both run on the CPU as a dry run.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import learner_ranks
import torch
from scripted_world import MODEL
from torch.distributed.device_mesh import init_device_mesh

from bench.kernels.problems import random_model
from bench.kernels.suites import HEADS
from capo_fast.config.schema import Config, LossConfig, PolicyConfig, RolloutConfig
from capo_fast.plan.hardware import find_hardware
from capo_fast.plan.job import Job, Lengths
from capo_fast.plan.memory import learning, state
from capo_fast.plan.shapes import shape_of
from capo_fast.policy.batch import pack_update
from capo_fast.policy.learner import Learner
from capo_fast.policy.model import load_model, shard_policy, whole
from capo_fast.records import PackedBatch
from capo_fast.runtime.ranks import ranks

ALLOWED = 1e-3
"""Error of a parameter's gradient, relative to its norm."""
CONFIG = Config(
    loss=LossConfig(kl_coef=0.0),
    train=learner_ranks.TRAIN,
    rollout=RolloutConfig(temperature=1.0, max_tokens=64),
)
BYTES_A_WEIGHT = 16
"""Master weight, gradient and AdamW's two moments, each in float32."""


def learner_of(model: Any, policy: PolicyConfig, device: torch.device) -> Learner:
    config = replace(CONFIG, policy=policy)
    mesh = init_device_mesh(device.type, (1,))
    return Learner(shard_policy(model.train(), policy, mesh), None, config)


def gradients_of(impl: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Gradients by parameter and the log-probs, on the host."""
    learner = learner_of(load_model(MODEL, "sdpa"), PolicyConfig(dtype="float32", loss_kernel=impl), device)
    [micro] = pack_update(learner_ranks.SAMPLES, learner.config, 0, 1)
    loss, result = learner.policy(micro.to(device), learner.spec, loss=True)
    loss.backward()
    found = {name: whole(x.grad).cpu() for name, x in learner.policy.named_parameters() if x.grad is not None}
    return found | {"log-probs": result.logprobs.cpu()}


def compare_gradients(impls: list[str], device: torch.device) -> bool:
    exact, good = gradients_of("reference", torch.device("cpu")), True
    for impl in impls:
        found = gradients_of(impl, device)
        errors = {name: float((found[name] - x).norm() / x.norm()) for name, x in exact.items()}
        worst = max(errors, key=lambda name: errors[name])
        good &= (is_good := errors[worst] <= ALLOWED)
        print_line("gradients", impl=impl, worst=worst, error=errors[worst], parameters=len(errors), good=is_good)
    return good


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Lists operations for which the host waits for the GPU, by torch's warnings."""
    found: list[str] = []
    if not torch.cuda.is_available():
        yield found
        return
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    torch.cuda.set_sync_debug_mode("default")
    found += [f"{each.filename.rpartition('/')[2]}:{each.lineno}" for each in caught if "synchron" in str(each.message)]


def measure_micro_batches(device: torch.device) -> None:
    """Measures steps of 1 and of 4 micro-batches: both must have the same number of waits."""
    name, copies = ("qwen2.5-0.5b", 20) if device.type == "cuda" else ("toy", 1)
    model = random_model(HEADS[name])
    weights = sum(x.numel() for x in model.parameters())
    learner = learner_of(model, PolicyConfig(dtype="bfloat16"), device)
    [micro] = pack_update(learner_ranks.SAMPLES * copies, learner.config, 0, 1)
    micro = replace(micro, input_ids=micro.input_ids % HEADS[name].vocab, targets=micro.targets % HEADS[name].vocab)
    for count in (1, 1, 4):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with counted_waits() as waits:
            learner.train_batch([[micro] * count])
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        print_line(
            "micro-batch",
            model=name,
            micro_batches=count,
            tokens=len(micro.input_ids),
            responses=len(micro.targets),
            seconds=seconds,
            peak_bytes=peak,
            planned_bytes=planned_bytes(learner, model, micro, count),
            state_bytes=weights * BYTES_A_WEIGHT,
            waits=len(waits),
            where=sorted(set(waits)),
        )


def planned_bytes(learner: Learner, model: Any, micro: PackedBatch, count: int) -> float:
    """Peak memory of such a step as predicted by `capo plan`. Neither figure includes CUDA's context."""
    tokens, hardware = len(micro.input_ids), find_hardware("cpu" if learner.device.type == "cpu" else "h100")
    if learner.device.type == "cuda":  # of a GPU's properties only its memory affects the learner's bytes
        hardware = replace(hardware, memory=torch.cuda.get_device_properties(learner.device).total_memory)
    config = replace(
        learner.config,
        rollout=replace(learner.config.rollout, prompts=count, n=1),
        train=replace(learner.config.train, micro_tokens=tokens),
    )
    shape, lengths = shape_of(model.config, "random"), Lengths(1, tokens, 1)
    job = Job(config, shape, hardware, 1, 1, lengths, packed=(tokens, len(micro.targets)))
    return max(sum(parts.values()) for parts in learning(job, state(job)).values())


def print_line(part: str, **figures: Any) -> None:
    print(json.dumps({"part": part, **figures}), flush=True)


def main(action: str, impls: list[str]) -> int:
    with ranks() as device:
        if action == "gradients":
            return 0 if compare_gradients(impls, device) else 1
        measure_micro_batches(device)
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
