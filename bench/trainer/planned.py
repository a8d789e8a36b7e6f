"""Memory predicted by `capo plan` and memory measured in learner steps, on a CPU, by part.

    python -m bench.trainer.planned --model FOLDER [--ranks 1 2 4] [--set KEY=VALUE ...]
    python -m bench.trainer.planned --model qwen2.5-0.5b --random      # that shape, with random weights
    python -m bench.trainer.planned --model FOLDER --engine            # only vLLM's engine, on one rank

Each number of ranks is a separate torchrun with one thread per rank. The measurement is resident memory above that of
the process after its imports and two steps of the embedded model; the maximum over ranks. A phase's peak is VmHWM,
which is reset before the phase. Responses are random, all of the same length, and in one micro-batch.

glibc keeps freed blocks below 32 MiB, which most activations are. Here it returns blocks of 64 KiB or more to the
system, unless the environment has MALLOC_MMAP_THRESHOLD_. Numbers of ranks that need more than the free memory are left
out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bench.trainer.learner import sample_of
from capo_fast.config import load_config
from capo_fast.config.schema import Config
from capo_fast.markdown import markdown_table
from capo_fast.plan.hardware import GIB, find_hardware
from capo_fast.plan.job import Job, Lengths
from capo_fast.plan.memory import engine, gradients, learning, state, workspace
from capo_fast.plan.shapes import ModelShape, find_shape
from capo_fast.policy.batch import pack_update
from capo_fast.policy.learner import Learner
from capo_fast.policy.loading import load_learner
from capo_fast.policy.model import shard_policy
from capo_fast.records import CreditedSample, PackedBatch, Prompt
from capo_fast.runtime.ranks import gather, ranks

SETTINGS = {
    "algorithm": "grpo",
    "policy.dtype": "float32",
    "engine.dtype": "float32",
    "loss.kl_coef": "0",
    "rollout.prompts": "4",
    "rollout.n": "2",
    "rollout.max_tokens": "200",
    "train.epochs": "1",
    "train.minibatches": "1",
    "train.micro_tokens": "1000000",
}
PROMPT = 56
"""Tokens per prompt."""


# ---- a rank ----


def memory(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


class Meter:
    """Resident bytes above those at the start, by phase."""

    def __init__(self) -> None:
        self.start = self.resident()
        self.found: dict[str, int] = {}

    def resident(self) -> int:
        """Resident bytes without freed blocks that glibc keeps."""
        ctypes.CDLL(None).malloc_trim(0)
        return memory("VmRSS")

    def note(self, phase: str, found: int) -> None:
        self.found[phase] = max(self.found.get(phase, 0), found - self.start)

    def reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def watch(self, learner: Learner) -> None:
        """Note the peaks of forward pass, backward pass and update of every step."""

        def after(phase: str) -> None:
            self.note(phase, memory("VmHWM"))
            self.reset()

        def before_update(*unused: Any) -> None:
            after("backward")
            self.note("gradients", self.resident())
            self.reset()

        learner.policy.register_forward_pre_hook(lambda *unused: self.reset())
        learner.policy.register_forward_hook(lambda *unused: after("loss"))
        learner.optimizer.register_step_pre_hook(before_update)
        learner.optimizer.register_step_post_hook(lambda *unused: after("update"))


def random_learner(shape: ModelShape, config: Config) -> Learner:
    """A learner of a Qwen2 or Llama of this shape: made on the meta device, sharded, then filled on each rank."""
    from transformers import AutoConfig, AutoModelForCausalLM

    entries = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "tie_word_embeddings": shape.tied,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.kind, **entries), dtype=torch.float32)
    policy = shard_policy(model.train(), config.policy, init_device_mesh("cpu", (dist.get_world_size(),)))
    policy.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in [*policy.named_parameters(), *policy.named_buffers()]:
            tensor.normal_(0, 0.02) if tensor.ndim > 1 else tensor.fill_(0.0 if name.endswith("bias") else 1.0)
    return Learner(policy, None, config)


def samples(config: Config, vocab: int) -> list[CreditedSample]:
    prompts = [Prompt(str(i), str(i), "0", None, tuple(range(i, i + PROMPT))) for i in range(config.rollout.prompts)]
    tokens = config.rollout.max_tokens
    return [
        sample_of(x, group, i, tokens, vocab, True) for group, x in enumerate(prompts) for i in range(config.rollout.n)
    ]


def micro_batch(config: Config, vocab: int, rank: int, count: int) -> PackedBatch:
    """The one micro-batch of a rank's update."""
    found = pack_update(samples(config, vocab), config, rank, count)
    assert len(found) == 1, f"{len(found)} micro-batches, wanted one"
    return found[0]


def size_of(batch: PackedBatch) -> tuple[int, int]:
    """(N, T)"""
    return len(batch.input_ids), len(batch.targets)


def step(learner: Learner, vocab: int) -> tuple[int, int]:
    """One update; (N, T) of this rank's micro-batch."""
    batch = micro_batch(learner.config, vocab, dist.get_rank(), dist.get_world_size())
    learner.train_batch([[batch]])
    return size_of(batch)


def measure(options: argparse.Namespace) -> None:
    """Measure this job's ranks; rank 0 prints the results as JSON."""
    with ranks() as device:
        shape, config = find_shape(options.model), config_of(options)
        warm, _ = load_learner(str(TINY), config, device, [(5, 6, 7)], False)
        for _ in range(2):
            step(warm, 60)
        del warm
        meter = Meter()
        learner = random_learner(shape, config) if options.random else learner_of(options, config, device)
        meter.note("state", meter.resident())
        meter.watch(learner)
        for _ in range(options.steps):
            packed = step(learner, shape.vocab)
        found = gather([(meter.found, packed)])
        if dist.get_rank() == 0:
            print(json.dumps({"ranks": len(found), "found": found}), flush=True)


def learner_of(options: argparse.Namespace, config: Config, device: torch.device) -> Learner:
    return load_learner(options.model, config, device, [(5, 6, 7)], False)[0]


TINY = Path(__file__).parents[2] / "capo_fast/tiny/model"


def measure_engine(options: argparse.Namespace) -> None:
    """Measure an engine without a learner, after one completed request."""
    from capo_fast.engine.vllm import VllmEngine
    from capo_fast.records import Request

    config = config_of(options)
    with ranks():
        import vllm.v1.engine.llm_engine  # noqa: F401  memory of the import is not measured

        meter = Meter()
        vllm_engine = VllmEngine(options.model, config.engine)
        vllm_engine.add(Request("0", tuple(range(5, 5 + PROMPT)), 0, 1.0, 1.0, -1, 16))
        while not vllm_engine.step():
            pass
        meter.note("engine", meter.resident())
        print(json.dumps({"ranks": 1, "found": [(meter.found, (0, 0))]}), flush=True)


# ---- the table ----


def config_of(options: argparse.Namespace) -> Config:
    given = dict(word.split("=", 1) for word in options.set)
    return load_config([f"--{key}={value}" for key, value in (SETTINGS | given).items()])


def predicted(options: argparse.Namespace, count: int, packed: tuple[int, int]) -> dict[str, float]:
    config = config_of(options)
    lengths = Lengths(PROMPT, config.rollout.max_tokens, 1)
    job = Job(config, find_shape(options.model), find_hardware("cpu"), count, 1, lengths, packed=packed)
    if options.engine:
        return {"engine": sum((engine(job) | workspace(job.engines)).values())}
    held = sum(state(job).values())
    found = {name: sum(parts.values()) for name, parts in learning(job, state(job)).items()}
    return {
        "state": held,
        "loss": found["loss"],
        "backward": max(found["backward"], found["reduction"]),
        "gradients": held + sum(gradients(job).values()),
        "update": found["update"],
    }


def rows(options: argparse.Namespace, line: dict[str, Any]) -> list[list[str]]:
    """A row per phase, and one of their maximum."""
    found: list[tuple[dict[str, float], list[int]]] = line["found"]
    packed = max(tokens for _, (tokens, _) in found), max(responses for _, (_, responses) in found)
    plan = predicted(options, line["ranks"], packed)
    measured = {name: max(each[name] for each, _ in found) for name in plan}
    plan["most"], measured["most"] = max(plan.values()), max(measured.values())
    return [
        [options.model.rpartition("/")[2], str(line["ranks"]), name, *_figures(plan[name], measured[name])]
        for name in plan
    ]


def _figures(plan: float, measured: float) -> tuple[str, str, str]:
    return f"{plan / GIB:.3f}", f"{measured / GIB:.3f}", f"{plan / measured:.3f}"


PROCESS = 0.8 * GIB
"""Memory of a rank's code and libraries."""


def missing_memory(options: argparse.Namespace, count: int) -> float:
    """Bytes that a job of `count` ranks needs beyond the free memory; 0 if it fits."""
    packed = size_of(micro_batch(config_of(options), 60, 0, count))
    wanted = count * (1.1 * max(predicted(options, count, packed).values()) + PROCESS)
    return max(0.0, wanted - psutil.virtual_memory().available)


HEAD = ["model", "ranks", "at the peak of", "predicted GiB", "measured GiB", "ratio"]


def run(count: int, words: Sequence[str]) -> dict[str, Any]:
    """Output of a job of `count` ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**16)} | os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "bench.trainer.planned", *words, "--measure"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"ranks"'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or with --random a published model's name")
    parser.add_argument("--random", action="store_true", help="random weights, no files")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--engine", action="store_true", help="measure the engine instead of the learner")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the run")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # for its own ranks
    options = parser.parse_args()
    if options.measure:
        work: Callable[[argparse.Namespace], None] = measure_engine if options.engine else measure
        work(options)
        return
    for count in [1] if options.engine else options.ranks:
        if missing := missing_memory(options, count):
            print(f"{count} ranks left out: {missing / GIB:.1f} GiB more memory needed", file=sys.stderr, flush=True)
            continue
        found = rows(options, run(count, sys.argv[1:]))
        print(markdown_table(HEAD, found, right=set(HEAD[3:]), padded=True), flush=True)


if __name__ == "__main__":
    main()
