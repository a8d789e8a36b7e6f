"""A rank with batches of its own: the losses of TRL and Liger beside ours. Run by torchrun with the folder of the model
and the start of the name of the files to write."""

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
    """Each loss with its gradient and metrics, ours and Liger's; the first rank trains on fewer tokens."""
    batch = liger.make_batch(seed=rank)
    batch["attention_mask"][rank:2] = 0
    pairs = [liger.both(batch, loss_type=loss_type, beta=0.5) for loss_type in ("dapo", "cispo")]
    return [[torch.cat([x.flatten() for x in outcome]).tolist() for outcome in pair] for pair in pairs]


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, out, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    found = {"trl": compare_trl(model, out.parent, rank), "liger": compare_liger(rank)}
    out.with_suffix(f".{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
