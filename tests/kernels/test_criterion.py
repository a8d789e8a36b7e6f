"""The criterion can fail: it rejects errors that a loose tolerance would accept."""

from __future__ import annotations

import pytest
import torch
from criterion import check, loss_results
from problems import Problem

import capo_kernels as ck


def narrow_logprobs(x):
    x["logprobs"] = x["logprobs"].bfloat16().float()


def late_target(x):
    """The column p - 1 of a bfloat16 gradient, computed from p in bfloat16."""
    column = x["target column"]
    x["target column"] = ((column.float() + 1).bfloat16().float() - 1).to(column.dtype)


def forgotten_row(x):
    x["gradient by logits"][x["gradient by logits"].norm(dim=1).argmin()] = 0


def scaled(x):
    x["gradient by logits"] *= 1 + 2**-5


def one_nan(x):
    x["gradient by logits"][0, 0] = torch.nan


def wrong_dtype(x):
    x["loss"] = x["loss"].double()


def loss_off_by_a_thousandth(x):
    x["loss"] *= 0.999


FAULTS = [narrow_logprobs, late_target, forgotten_row, scaled, one_nan, wrong_dtype, loss_off_by_a_thousandth]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_criterion_rejects_the_fault(fault) -> None:
    """Rows of weight 1 and advantage -1, so that the target column is p - 1; p is near 1 in all rows."""
    g = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(16, 37, generator=g), torch.randint(37, (16,), generator=g)
    logits[torch.arange(16), targets] = 10.0
    ones = torch.ones(16)
    others = {"targets": targets, "weights": ones, "advantages": -ones}
    problem = Problem({"logits": logits.bfloat16()}, others, ck.LossSpec(objective="reinforce"))
    exact, same, got = (loss_results(p, "reference") for p in (problem.double, problem, problem))
    check(got, same, exact, {}, None)
    fault(got)
    with pytest.raises(AssertionError):
        check(got, same, exact, {}, None)


def test_new_tensors_are_full_of_nan() -> None:
    """Otherwise the tests would miss entries that a kernel does not write."""
    like = torch.zeros(100)
    for x in (torch.empty(100), torch.empty_like(like), like.new_empty(100), torch.empty(100).bfloat16()):
        assert x.isnan().all()
