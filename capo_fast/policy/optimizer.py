"""AdamW in the forms of `train.optimizer`, with its state from the start: a checkpoint always has the same entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from capo_fast.config.training import TrainConfig


def make_optimizer(parameters: Sequence[torch.nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """Of these parameters, with moments of zero; on the host between its steps under `train.offload_optimizer`."""
    fused = True if train.optimizer == "adamw-fused" else None  # None: one call per kind of operation, on a GPU
    optimizer = torch.optim.AdamW(
        parameters, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=fused
    )
    for parameter in parameters:
        step = torch.zeros((), device=parameter.device if fused else None)
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": step, **moments}
    if train.offload_optimizer:
        keep_on_host(optimizer)
    return optimizer


def keep_on_host(optimizer: torch.optim.Optimizer) -> None:
    """From now on its moments are on their parameters' device during a step alone."""

    def fetch(*unused: Any) -> None:
        for parameter, state in optimizer.state.items():
            _move(state, parameter.device)

    def put_back(*unused: Any) -> None:
        for state in optimizer.state.values():
            _move(state, torch.device("cpu"))

    optimizer.register_step_pre_hook(fetch)
    optimizer.register_step_post_hook(put_back)
    put_back()


def _move(state: dict[str, Any], device: torch.device) -> None:
    """The moments; the step's number stays where the optimizer wants it."""
    for key, value in state.items():
        if value.ndim > 0:
            state[key] = value.to(device)
