"""Loading on several ranks: whole weights, peak memory, and errors that only one rank can find."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import torch
import torch.distributed as dist
from scripted_world import MODEL
from torch.distributed.device_mesh import init_device_mesh

from capo_fast.config.schema import Config, LoraConfig, PolicyConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.loading import load_policy
from capo_fast.runtime.ranks import gather, ranks

LORA = Config(seed=5, lora=LoraConfig(rank=4))
FULL = Config(policy=PolicyConfig(dtype="float32"))


def loaded(path: str, config: Config):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return load_policy(path, config, torch.device("cpu"), mesh)


def whole_weights(path: str, config: Config) -> dict[str, torch.Tensor]:
    return {name: weight.full_tensor().detach() for name, weight in loaded(path, config).model.state_dict().items()}


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the peak since `peak_of` started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak_of(path: str) -> int:
    """Peak memory of loading, bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    policy = loaded(path, FULL)
    del policy
    return resident("VmHWM") - before


def error_of(path: str) -> str:
    try:
        loaded(path, FULL)
    except ConfigError as error:
        return str(error)
    return ""


def main(out: Path, large: str, not_finite: str) -> None:
    with ranks():
        weights = [whole_weights(MODEL, config) for config in (FULL, LORA)]
        found = gather([{"peak": peak_of(large), "error": error_of(not_finite)}])
        if dist.get_rank() == 0:
            torch.save(weights, out)
            out.with_suffix(".json").write_text(json.dumps(found))
