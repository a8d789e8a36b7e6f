"""Turns packed batches into gradient steps.

Gradients are summed over micro-batches and ranks with weights whose denominators span the whole update, so the split
does not change the step. An update whose loss or gradient is not finite is skipped on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

import capo_kernels as ck
from capo_fast.config.schema import Config
from capo_fast.errors import CapoError
from capo_fast.exchange.columns import Share, deal_columns
from capo_fast.exchange.figures import Figures
from capo_fast.exchange.tensors import Exchange
from capo_fast.policy.batch import has_gradient, keys_of, pack_plan, plan_updates
from capo_fast.policy.lora import BasePolicy
from capo_fast.policy.model import Policy, whole
from capo_fast.policy.optimizer import make_optimizer
from capo_fast.policy.work import PassCounter
from capo_fast.records import PackedBatch, TokenBatch
from capo_fast.runtime.ranks import gather, on_first_rank

T = TypeVar("T")


class TrainingDiverged(CapoError):
    """Too many updates in a row had a loss or gradient that is not finite."""


@dataclass(frozen=True)
class Update:
    """One optimizer update; values are over all ranks unless noted."""

    loss: float
    grad_norm: float
    skipped: bool
    metrics: list[dict[str, torch.Tensor]]
    """Metrics of this rank's micro-batches (`capo_kernels.combine_metrics`), on the device."""
    gaps: list[torch.Tensor]
    """[2, T] for each of this rank's micro-batches, on the device: the trainer's log-probs minus the engine's, and
    whether the token is trained."""


class Learner:
    """Optimizer, schedule and loss of one policy. None of them includes frozen parameters."""

    def __init__(self, policy: Policy, reference: Policy | BasePolicy | None, config: Config) -> None:
        self.policy = policy
        self.reference = reference
        self.config = config
        self.spec = loss_spec(config)
        self.device = next(policy.parameters()).device
        self._passes = PassCounter(policy, *([reference] if isinstance(reference, Policy) else []))
        train = config.train
        trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(trainable, train)
        updates = train.steps * train.epochs * train.minibatches
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda update: lr_factor(update, train.schedule, train.warmup_steps, updates)
        )
        self.exchange = Exchange()
        self.bad_in_a_row = 0
        self.loss_kernel: str | None = None
        """The implementation of capo_kernels that the last loss ran on."""

    def train(self, share: Share) -> dict[str, float]:
        """All updates on one batch of rollouts. A collective.

        Returns the metrics of `train_batch` and of `skipped`, and the model's FLOPs.
        """
        world = self.exchange.count
        plans = plan_updates(share.figures, share.prompts, self.config, world)
        wanted = [keys_of(plans, rank, world) for rank in range(world)]
        share = replace(share, columns=deal_columns(share.columns, wanted, self.exchange))
        self._passes.read()  # drops the canary's passes
        metrics = self.train_batch([pack_plan(plan, share, self.config, self.exchange.rank, world) for plan in plans])
        flops = {"learn/flops": sum(gather([self._passes.read()]))}
        return metrics | skipped(share.figures, self.config) | flops

    def train_batch(self, minibatches: Sequence[Sequence[PackedBatch]]) -> dict[str, float]:
        """All updates of one batch of rollouts: `train.epochs` passes over its minibatches.

        Returns the step's metrics over all updates and ranks, with the packed tokens of one pass as `learn/tokens`.
        Raises TrainingDiverged.
        """
        prepared = [[self._prepare(micro) for micro in minibatch] for minibatch in minibatches]
        lr = float(self.optimizer.param_groups[0]["lr"])  # a tensor in torchao
        updates = [self._update(minibatch) for _ in range(self.config.train.epochs) for minibatch in prepared]
        metrics = gather(on_host([each for update in updates for each in update.metrics]))
        gaps = self.exchange.to_first(trained_gap(updates))
        tokens = gather([len(micro.input_ids) for minibatch in prepared for micro in minibatch])
        figures = on_first_rank(lambda: summarise(updates, metrics, gaps))
        return figures | {"lr": lr, "learn/tokens": sum(tokens)}

    @torch.no_grad()
    def logprobs_at(self, batch: TokenBatch, temperature: float, base: bool = False) -> torch.Tensor:
        """float32 [T], log-probs at a temperature under the policy, or under its adapter's frozen base."""
        policy = BasePolicy(self.policy) if base else self.policy
        found = policy(batch, replace(self.spec, temperature=temperature), loss=False)
        cast(FSDPModule, self.policy).reshard()  # else the weights outside the layers stay whole beside the engine
        return found

    @torch.no_grad()
    def _logprobs(self, policy: Policy | BasePolicy, batch: TokenBatch) -> torch.Tensor:
        return policy(batch, self.spec, loss=False)

    def _prepare(self, micro: PackedBatch) -> PackedBatch:
        """The micro-batch on the device, with old and reference log-probs if the loss needs them.

        FSDP averages gradients over ranks, and the weights' denominators already span them, so the weights are
        multiplied by the number of ranks. A factor on the loss would need another pass over the logits' gradient.
        """
        micro = micro.to(self.device)
        micro = replace(micro, weights=micro.weights * dist.get_world_size())
        if self.config.train.epochs * self.config.train.minibatches > 1:
            by_rollout = self.config.policy.old == "rollout"
            old = micro.rollout_logprobs if by_rollout else self._logprobs(self.policy, micro)
            micro = replace(micro, old_logprobs=old)
        if self.reference is not None:
            micro = replace(micro, ref_logprobs=self._logprobs(self.reference, micro))
        return micro

    def _update(self, minibatch: Sequence[PackedBatch]) -> Update:
        loss_sum, metrics, gaps = torch.zeros((), device=self.device), [], []
        for micro in self._accumulating(minibatch):
            loss, result = self.policy(micro, self.spec, loss=True)
            self.loss_kernel = result.impl
            loss.backward()
            loss_sum += loss.detach()
            metrics.append(result.metrics)
            gaps.append(torch.stack([result.logprobs - micro.rollout_logprobs, micro.weights != 0]))
        dist.all_reduce(loss_sum)
        loss_sum /= dist.get_world_size()
        norm, skipped = self._step(loss_sum.item())
        return Update(loss_sum.item(), norm, skipped, metrics, gaps)

    def _accumulating(self, micro_batches: Sequence[T]) -> Iterator[T]:
        """The micro-batches. Under HSDP the hosts sum gradients only in the backward pass of the last one."""
        for place, micro in enumerate(micro_batches, 1):
            cast(FSDPModule, self.policy).set_requires_all_reduce(place == len(micro_batches))
            yield micro

    def _step(self, loss: float) -> tuple[float, bool]:
        """Take the optimizer's step; returns the gradients' norm and whether the step was skipped."""
        parameters = [p for p in self.policy.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        finite = math.isfinite(loss) and math.isfinite(norm.item())
        if finite:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.train.grad_clip, norm)
            self.optimizer.step()
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count_bad(finite, loss, norm.item())
        return norm.item(), not finite

    def _count_bad(self, finite: bool, loss: float, norm: float) -> None:
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        if self.bad_in_a_row >= self.config.train.max_bad_updates:
            raise TrainingDiverged(
                f"{self.bad_in_a_row} updates in a row were not finite (the last: loss {loss}, gradient norm {norm}): "
                "the limit train.max_bad_updates"
            )


def loss_spec(config: Config) -> ck.LossSpec:
    """The kernel's objective for a configuration: all its fields except these two are settings of `loss`."""
    names = {each.name for each in fields(ck.LossSpec)} - {"temperature", "softcap"}
    return ck.LossSpec(
        temperature=config.rollout.temperature, **{name: getattr(config.used_loss, name) for name in names}
    )


def lr_factor(update: int, schedule: str, warmup: int, total: int) -> float:
    """Fraction of the peak learning rate at an update: linear warm-up, then constant, cosine to 0, or linear to 0."""
    if update < warmup:
        return (update + 1) / (warmup + 1)
    progress = min((update - warmup) / max(total - warmup, 1), 1.0)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if schedule == "linear" else 1.0


def on_host(metrics: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The metrics on the host, in one copy with a single wait."""
    if not metrics:
        return []
    rows = torch.stack([torch.stack(list(each.values())) for each in metrics]).cpu()
    return [dict(zip(each, row.unbind(), strict=True)) for each, row in zip(metrics, rows, strict=True)]


def trained_gap(updates: Sequence[Update]) -> torch.Tensor:
    """float32 [T] on the host, the gaps of the tokens trained in the first of these updates; empty without updates."""
    if not updates:
        return torch.empty(0)
    gap, trained = torch.cat(updates[0].gaps, dim=1).cpu()
    return gap[trained != 0]


def skipped(figures: Sequence[Figures], config: Config) -> dict[str, int]:
    """Numbers of rollouts that never enter the model (not trained or no gradient), and of their response tokens."""
    lengths = [each.tokens for each in figures if not has_gradient(each, config)]
    return {"learn/skipped_rollouts": len(lengths), "learn/skipped_tokens": sum(lengths)}


def summarise(
    updates: Sequence[Update], micro: Sequence[dict[str, torch.Tensor]], gaps: Sequence[torch.Tensor]
) -> dict[str, float]:
    """The metrics of one step, over the tokens that entered the model; NaN if none did (see `skipped`).

    `gap/*` compares log-probs of trainer and engine over the first minibatch, before any update: mean and 99th
    percentile of the absolute difference, and k3, the estimate of KL(engine, trainer). The engine's log-probs are of
    the distribution it sampled from: with top-p or top-k they are normalised over the nucleus, which adds to the gap.
    """
    if not updates:
        return {"updates": 0, "updates_skipped": 0}
    metrics = ck.combine_metrics(micro)
    taken = [update for update in updates if not update.skipped] or updates
    keys = ("ratio_mean", "clip_low_frac", "clip_high_frac", "approx_kl", "ref_kl", "entropy", "active_frac")
    log_ratio = torch.cat(list(gaps)).double()
    log_ratio = log_ratio if len(log_ratio) else torch.full((1,), torch.nan, dtype=torch.float64)
    gap = log_ratio.abs()
    return {
        **{f"loss/{key}": metrics[key].item() for key in (*keys, "is_weight_mean", "ess")},
        "loss/loss": sum(update.loss for update in taken) / len(taken),
        "grad_norm": sum(update.grad_norm for update in taken) / len(taken),
        "updates": len(updates),
        "updates_skipped": sum(update.skipped for update in updates),
        "gap/mean": gap.mean().item(),
        "gap/p99": gap.sort().values[int(0.99 * len(gap))].item(),
        "gap/k3": (log_ratio.expm1() - log_ratio).mean().item(),
    }
