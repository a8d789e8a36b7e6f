"""The schedule of P over a run (`credit.schedule`). [us] In the paper process credit matters late, and P is constant.

A group's wrong steps are multiplied by its fraction of the largest P, which is the P of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from capo_fast.config.schema import Config
from capo_fast.verify.functions import is_right

Verdicts = Sequence[float | None]
"""Verdicts of a group's rollouts; None if a check did not finish."""


def weight_at(config: Config, progress: float) -> float:
    """P at a progress in [0, 1], of the run or of a group's pass rate: from `process_start` to `process_weight`."""
    start, end = config.credit.process_start, config.credit.process_weight
    return start + (end - start) * progress


def process_shares(groups: Sequence[Verdicts], config: Config, step: int) -> list[float]:
    """Per group its P over the largest one. step: of training, from 1."""
    largest, schedule = config.credit.largest_process_weight, config.credit.schedule
    if schedule == "constant" or largest == 0:
        return [1.0] * len(groups)
    if schedule == "linear":
        return [weight_at(config, run_progress(config, step)) / largest] * len(groups)
    return [weight_at(config, pass_rate(group)) / largest for group in groups]


def run_progress(config: Config, step: int) -> float:
    """0 in the first step, 1 in the last; a run resumed with more steps continues on the new line."""
    return min((step - 1) / max(config.train.steps - 1, 1), 1.0)


def pass_rate(group: Verdicts) -> float:
    """Share of right answers of a group; [us] 0 if none of its checks finished."""
    right = [float(is_right(verdict)) for verdict in group if verdict is not None]
    return fmean(right) if right else 0.0


def schedule_metrics(groups: Sequence[Verdicts], config: Config, step: int) -> dict[str, float]:
    """`credit/process_weight`, the mean P of the groups; {} if P is constant."""
    shares = process_shares(groups, config, step)
    if config.credit.schedule == "constant" or not shares:
        return {}
    return {"credit/process_weight": fmean(shares) * config.credit.largest_process_weight}
