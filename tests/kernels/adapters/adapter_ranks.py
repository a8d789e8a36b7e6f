"""One rank with its own batches: our losses against TRL's and Liger's, and a head that FSDP2 has sharded. torchrun runs
it with the model's folder and the prefix of the files to write."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import test_liger_adapter as liger
import torch
import torch.distributed as dist
import trl_world as trl
from torch.distributed.fsdp import fully_shard

import capo_kernels as ck


def compare_trl(model: str, folder: Path, rank: int) -> list[dict[str, Any]]:
    trainers = [trl.make_trainer(kind, model, folder) for kind in (trl.CapoTrainer, trl.GRPOTrainer)]
    inputs = trl.make_inputs(trainers[0], seed=rank)
    wrapped = [trainer.accelerator.prepare_model(trainer.model) for trainer in trainers]
    assert all(isinstance(ddp, torch.nn.parallel.DistributedDataParallel) for ddp in wrapped)
    found = []
    for setting in trl.SETTINGS:
        pairs = zip(trainers, wrapped, strict=True)
        ours, theirs = (trl.run(trainer, setting, inputs, ddp) for trainer, ddp in pairs)
        found.append({"setting": str(setting), "grad": ours.grad.tolist()} | trl.difference(ours, theirs))
    return found


def compare_liger(rank: int) -> list[list[list[float]]]:
    """Losses, gradients and metrics, ours and Liger's. The first rank trains on fewer tokens."""
    batch = liger.make_batch(seed=rank)
    batch["attention_mask"][rank:2] = 0
    pairs = [liger.both(batch, loss_type=loss_type, beta=0.5) for loss_type in ("dapo", "cispo")]
    return [[torch.cat([x.flatten() for x in outcome]).tolist() for outcome in pair] for pair in pairs]


def sharded_head(rank: int) -> dict[str, Any]:
    """A head that is an FSDP2 unit of its own and is used without its forward: the error of a call, and after
    `unshard()` the distance of its gradients from the mean over the ranks."""
    batches = [fsdp_batch(seed) for seed in range(2)]
    whole, sharded = fsdp_model(), fsdp_model()
    torch.stack([fsdp_loss(whole, *batch) for batch in batches]).mean().backward()
    for unit in (sharded[0], sharded[1], sharded):
        fully_shard(unit)
    try:
        fsdp_loss(sharded, *batches[rank])
        message = "none"
    except TypeError as error:
        message = str(error)
    errors = []
    for _ in range(2):  # the second step starts from the state after the first backward
        sharded.zero_grad()
        fsdp_loss(sharded, *batches[rank], unshard=True).backward()
        pairs = zip(sharded.parameters(), whole.parameters(), strict=True)
        errors += [(ours.grad.full_tensor() - exact.grad).abs().max().item() for ours, exact in pairs]
    return {"message": message, "errors": errors}


class BodyForward(torch.nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[0](x)


def fsdp_model() -> BodyForward:
    torch.manual_seed(0)
    return BodyForward(torch.nn.Linear(8, 16), torch.nn.Linear(16, 40))


def fsdp_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(5, 8, generator=g), torch.randint(40, (5,), generator=g), torch.randn(5, generator=g)


def fsdp_loss(
    model: BodyForward, x: torch.Tensor, targets: torch.Tensor, advantages: torch.Tensor, unshard: bool = False
) -> torch.Tensor:
    hidden, head = model(x), model[1]
    if unshard:
        head.unshard()
    others = {"weights": torch.full((5,), 0.2), "advantages": advantages, "bias": head.bias}
    return ck.linear_policy_loss(hidden, head.weight, targets, **others).loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, out, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    found = {"trl": compare_trl(model, out.parent, rank), "liger": compare_liger(rank), "head": sharded_head(rank)}
    out.with_suffix(f".{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
