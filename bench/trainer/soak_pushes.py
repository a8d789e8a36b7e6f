"""Pushes of weights into a real engine, with faults planted at random places: the canary must detect each of them.

    python -m bench.trainer.soak --pushes 50 [--model FOLDER] [--lora none | adapter | merged] [--seed 0] [--json FILE]

A cycle changes some of the policy's weights, pushes with one planted fault and then without: the first push must be
rejected, the second accepted. Exit status 1 if a fault was missed or a correct push rejected. Prints the median seconds
of correct pushes after the first two, and of their parts.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

import capo_fast.engine.vllm_weights as vllm_weights
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config, EngineConfig, LoraConfig, PolicyConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.vllm import VllmEngine
from capo_fast.policy.canary import SyncError
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import add_adapter
from capo_fast.policy.model import load_model, shard_policy
from capo_fast.policy.sync import AdapterSync, FullSync, MergedSync, Sync
from capo_fast.runtime.ranks import ranks

Push = Iterator[tuple[str, torch.Tensor]]
Change = Callable[[torch.Tensor, random.Random], torch.Tensor]
ENGINE = EngineConfig(dtype="float32", max_model_len=256, kv_cache_gb=0.25, enforce_eager=True)
SYNCS = {"none": FullSync, "adapter": AdapterSync, "merged": MergedSync}


def config_of(lora: str) -> Config:
    rank = 0 if lora == "none" else 8
    return Config(
        lora=LoraConfig(rank=rank),
        policy=PolicyConfig(dtype="float32"),
        engine=replace(ENGINE, merge_lora=lora == "merged"),
    )


class Cycle:
    """A policy, an engine and the sync between them; names of the weights changed since the last push."""

    def __init__(self, model_path: str, lora: str, seed: int) -> None:
        config = config_of(lora)
        model = load_model(model_path, "sdpa")
        self.start = {name: weight.clone() for name, weight in model.state_dict().items()}
        self.tied = model.config.tie_word_embeddings
        if config.lora.rank:
            add_adapter(model, config.lora, seed)
        self.learner = Learner(shard_policy(model, config.policy, init_device_mesh("cpu", (1,))), None, config)
        self.engine = VllmEngine(model_path, config.engine, config.lora)
        probe = [tuple(3 + (i * i) % 40 for i in range(config.sync.probe_tokens))]
        arguments = (None, probe, config) if lora == "none" else (probe, config)
        self.sync: Sync = SYNCS[lora](self.engine, self.learner, *arguments)
        self.lora, self.draw, self.moved = lora, random.Random(seed), list[str]()

    @torch.no_grad()
    def move(self) -> None:
        """Change some weights by about a step of the optimizer."""
        trainable = [(n, p) for n, p in self.learner.policy.model.named_parameters() if p.requires_grad]
        # While B is zero, a change of A does not change the merged weights.
        matrices = [(n, p) for n, p in trainable if p.ndim == 2 and ".lora_A." not in n]
        chosen = self.draw.sample(matrices, min(4, len(matrices)))
        for _, parameter in chosen:
            local = parameter.to_local()
            local += 1e-4 * torch.randn_like(local)
        self.moved = [name.split(".lora_")[0].removesuffix(".weight") + ".weight" for name, _ in chosen]
        if self.tied:  # one tensor in the engine: the head is pushed last and overwrites the embedding
            self.moved = [name.replace("model.embed_tokens.", "lm_head.") for name in self.moved]

    def victim(self) -> str:
        return self.draw.choice(self.moved)

    def weight(self, name: str) -> vllm_weights.Weight:
        """vLLM's weight of this name."""
        return self.engine._llm.apply_model(vllm_weights._weights)[0][name]


# ---- changes of one weight ----


def one_element(weight: torch.Tensor, draw: random.Random) -> torch.Tensor:
    weight = weight.clone()
    weight.view(-1)[draw.randrange(weight.numel())] += 1e-4 * weight.square().mean().sqrt()
    return weight


def swapped(weight: torch.Tensor, draw: random.Random, dim: int) -> torch.Tensor:
    order = list(range(weight.shape[dim]))
    i, j = draw.sample(order, 2)
    order[i], order[j] = order[j], order[i]
    return weight.index_select(dim, torch.tensor(order))


def shuffled(weight: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Elements in random order; a square matrix is transposed. The sum stays the same."""
    if weight.shape[0] == weight.shape[1]:
        return weight.T.contiguous()
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    return weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight)


def not_a_number(weight: torch.Tensor, draw: random.Random) -> torch.Tensor:
    weight = weight.clone()
    weight.view(-1)[draw.randrange(weight.numel())] = torch.nan
    return weight


CHANGES: dict[str, Change] = {
    "one element": one_element,
    "rows swapped": lambda weight, draw: swapped(weight, draw, 0),
    "columns swapped": lambda weight, draw: swapped(weight, draw, 1),
    "shuffled": shuffled,
    "nan": not_a_number,
    "rounded to bfloat16": lambda weight, draw: weight.bfloat16().float(),
}


# ---- faults of a push of weights ----


@contextmanager
def instead(owner: Any, name: str, function: Any) -> Iterator[None]:
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)


def on_the_way(cycle: Cycle, change: Callable[[Push], Push]) -> Any:
    load = cycle.engine.load
    return instead(cycle.engine, "load", lambda weights: load(change(weights)))


def changed(cycle: Cycle, change: Change) -> Any:
    victim, draw = cycle.victim(), cycle.draw
    return on_the_way(cycle, lambda weights: ((n, change(w, draw) if n == victim else w) for n, w in weights))


def left_out(cycle: Cycle) -> Any:
    """Leaves out all changed weights or one of them; a tied head keeps its old packed copy."""
    victims = cycle.draw.choice([set(cycle.moved), {cycle.victim()}])
    return on_the_way(cycle, lambda weights: (pair for pair in weights if pair[0] not in victims))


def restored(cycle: Cycle) -> Any:
    """Restores a weight after the push, like a reload of the model's folder (trl#5312)."""
    load, names = cycle.engine.load, cycle.engine.fused_with({cycle.victim()})

    def load_and_restore(weights: Push) -> None:
        load(weights)
        load((name, cycle.start[name]) for name in names)

    return instead(cycle.engine, "load", load_and_restore)


def packed_copy(cycle: Cycle, stale: bool) -> Any:
    """The kernel's packed copy of a matrix is the old one or has a wrong element; everything else is correct."""
    load, weight = cycle.engine.load, cycle.weight(cycle.victim())
    module = weight.module
    if not weight.packed:
        return changed(cycle, one_element)

    def load_and_pack(weights: Push) -> None:
        before = module.cpu_linear
        load(weights)
        right = vllm_weights._packed.get(module)
        if stale or right is None:
            module.cpu_linear = before
            return
        wrong = vllm_weights._unpacked(module, weight.place.columns).contiguous()
        wrong.view(-1)[cycle.draw.randrange(wrong.numel())] += 1e-2 * wrong.square().mean().sqrt()
        vllm_weights._pack(weight, wrong)
        vllm_weights._packed[module] = replace(right, linear=module.cpu_linear)

    return instead(cycle.engine, "load", load_and_pack)


WEIGHT_FAULTS: dict[str, Callable[[Cycle], Any]] = {
    **{name: (lambda cycle, change=change: changed(cycle, change)) for name, change in CHANGES.items()},
    "not pushed": left_out,
    "restored": restored,
    "packed copy stale": lambda cycle: packed_copy(cycle, stale=True),
    "packed copy wrong": lambda cycle: packed_copy(cycle, stale=False),
    "prefixes kept": lambda cycle: instead(cycle.engine, "forget_prefixes", lambda: None),
}


# ---- faults of a push of an adapter ----


def files_on_the_way(cycle: Cycle, change: Callable[[dict[str, Any], dict[str, bytes]], dict[str, bytes]]) -> Any:
    load = cycle.engine.load_adapter

    def load_changed(files: dict[str, bytes]) -> None:
        load(change(json.loads(files["adapter_config.json"]), dict(files)))

    return instead(cycle.engine, "load_adapter", load_changed)


def scaled(cycle: Cycle) -> Any:
    def double(config: dict[str, Any], files: dict[str, bytes]) -> dict[str, bytes]:
        return files | {"adapter_config.json": json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}).encode()}

    return files_on_the_way(cycle, double)


def tensors_changed(cycle: Cycle, change: Change) -> Any:
    from safetensors.torch import load, save

    def changed_files(config: dict[str, Any], files: dict[str, bytes]) -> dict[str, bytes]:
        weights = load(files["adapter_model.safetensors"])
        name = cycle.draw.choice([name for name in weights if weights[name].any()])
        weights[name] = change(weights[name], cycle.draw)
        return files | {"adapter_model.safetensors": save(weights, metadata={"format": "pt"})}

    return files_on_the_way(cycle, changed_files)


@contextmanager
def other_base(cycle: Cycle) -> Iterator[None]:
    """Changes one element of the base."""
    names = cycle.engine.fused_with({victim := cycle.victim()})
    right = {name: cycle.start[name] for name in names}
    cycle.engine.load(iter((right | {victim: one_element(right[victim], cycle.draw)}).items()))
    yield
    cycle.engine.load(iter(right.items()))


ADAPTER_FAULTS: dict[str, Callable[[Cycle], Any]] = {
    **{name: (lambda cycle, change=change: tensors_changed(cycle, change)) for name, change in CHANGES.items()},
    "adapter not pushed": lambda cycle: instead(cycle.engine, "load_adapter", lambda files: None),
    "scale": scaled,
    "other base": other_base,
}


def refused(cycle: Cycle, fault: Callable[[Cycle], Any]) -> bool:
    """True if the canary rejects a push with this fault."""
    with fault(cycle), suppress(SyncError, EngineError):
        cycle.sync.push_policy()
        return False
    return True


def parts(cycle: Cycle) -> dict[str, float]:
    """Seconds of each part of a check, measured once."""
    canary = cycle.sync._canary
    timed = {
        "engine's checksums": cycle.engine.checksums,
        "engine's probe": lambda: cycle.engine.score(canary._probe),
        "trainer's probe": cycle.sync.trainer_logprobs,
    }
    cycle.engine.forget_prefixes()
    return {name: _seconds(function) for name, function in timed.items()}


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def soak(model: str, lora: str, count: int, seed: int) -> dict[str, Any]:
    """Run `count` cycles; returns faults planted and missed by kind, and seconds of correct pushes."""
    planted, missed, seconds, checks = Counter[str](), Counter[str](), [], []
    with ranks():
        cycle = Cycle(resolve_model(model), lora, seed)
        cycle.move()
        cycle.sync.push_policy()
        faults = ADAPTER_FAULTS if lora == "adapter" else WEIGHT_FAULTS
        for number in range(count):
            cycle.move()
            name = list(faults)[number % len(faults)]
            planted[name] += 1
            missed[name] += not refused(cycle, faults[name])
            seconds.append(_seconds(cycle.sync.push_policy))  # a SyncError here exits the command
            if number % 10 == 0:
                checks.append(parts(cycle))
        cycle.engine.close()
    return {
        "planted": dict(planted),
        "missed": {name: n for name, n in missed.items() if n},
        "seconds": median(seconds[2:] or seconds),
        "parts": {name: median(each[name] for each in checks) for name in checks[0]},
    }
