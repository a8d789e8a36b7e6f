"""Careless callers: changed defaults of torch, views as arguments, missing votes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from calls import EVERYTHING, assert_same_bits, unchecked
from implementations import DEVICE
from problems import linear_problem, logits_problem

import capo_kernels as ck
from capo_kernels.fused import native


def results(problem, impl: str, factor: float = 2.0, **leaves: torch.Tensor) -> dict:
    given = {name: leaves.get(name, x).detach().requires_grad_() for name, x in problem.leaves.items()}
    result = problem.call(impl, given)
    (factor * result.loss).backward()
    return {"loss": result.loss.detach(), "logprobs": result.logprobs} | {name: x.grad for name, x in given.items()}


def test_a_transposed_weight(impl: str) -> None:
    """The head is stored as [H, V]; its gradient must not be scaled along the wrong strides."""
    problem = linear_problem(EVERYTHING)
    transposed = problem.leaves["weight"].T.contiguous().T
    assert not transposed.is_contiguous()
    got, want = results(problem, impl, weight=transposed), results(problem, "reference")
    for name in ("loss", "weight", "hidden"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [logits_problem, linear_problem])
def test_torchs_default_dtype_and_device_have_no_effect(make, impl: str) -> None:
    problem, spec = make(EVERYTHING), dataclasses.asdict(EVERYTHING)
    want = results(problem, impl)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            made = ck.LossSpec(**spec)
        got = results(dataclasses.replace(problem, spec=made), impl)
    finally:
        torch.set_default_dtype(before)
    assert_same_bits(got, want)
    assert torch.equal(made.numbers, EVERYTHING.numbers)


def test_log_probs_are_float32_for_any_default_dtype(impl: str) -> None:
    leaves = linear_problem().leaves
    targets = torch.zeros(leaves["hidden"].shape[0], dtype=torch.int64, device=DEVICE)
    hidden = leaves["hidden"].nan_to_num()
    try:
        torch.set_default_dtype(torch.float64)
        found = ck.linear_token_logprobs(hidden, leaves["weight"], targets, chunk_tokens=5, impl=impl)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32


def test_a_step_without_a_vote_is_not_read_out_of_bounds(impl: str) -> None:
    if impl == "reference":
        pytest.skip("an IndexError on a CPU")
    logits = torch.randn(6, 9, device=DEVICE, requires_grad=True)
    cu_seqlens = torch.tensor([0, 6], dtype=torch.int32, device=DEVICE)
    ones, group = torch.ones(1, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    stats = torch.tensor([[0.0, 1, 0, 1]], device=DEVICE)
    starts = torch.tensor([0, 1, 1, 1, 1, 1], device=DEVICE).bool()
    credit = ck.Credit(starts, torch.ones(5, device=DEVICE), ones, group, cu_seqlens, stats=stats)
    credit = unchecked(credit, step_wrong=torch.ones(2, device=DEVICE))
    targets, weights = torch.zeros(6, dtype=torch.int64, device=DEVICE), torch.ones(6, device=DEVICE)
    ck.policy_loss(logits, targets, weights=weights, credit=credit, impl=impl).loss.backward()
    assert logits.grad.isnan().all(1).tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize("view", ["slice", "columns", "expanded", "overlapping"])
def test_logits_that_may_not_be_overwritten_are_refused(view: str, impl: str) -> None:
    leaf = torch.randn(4, 9, device=DEVICE, requires_grad=True)
    computed = leaf * 1
    logits = {
        "slice": lambda: leaf[:],
        "columns": lambda: leaf[:, :-1],
        "expanded": lambda: computed[:1].expand(4, 9),
        "overlapping": lambda: computed.as_strided((4, 9), (1, 1)),
    }[view]()
    before, ones = leaf.detach().clone(), torch.ones(4, device=DEVICE)
    targets = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="inplace: got True for"):
        ck.policy_loss(logits, targets, weights=ones, advantages=ones, inplace=True, impl=impl)
    assert torch.equal(leaf.detach(), before)


def test_a_nan_advantage_is_not_clipped_away(impl: str) -> None:
    logits = torch.zeros(1, 3, device=DEVICE, requires_grad=True)
    one, nan = torch.ones(1, device=DEVICE), torch.full((1,), torch.nan, device=DEVICE)
    target = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for old in (-9.0, 9.0):
        result = ck.policy_loss(logits, target, weights=one, advantages=nan, old_logprobs=old * one, impl=impl)
        assert result.loss.isnan()
        assert torch.autograd.grad(result.loss, logits)[0].isnan().all()


@pytest.mark.parametrize("make", [logits_problem, linear_problem])
def test_transforms_of_torch_func_are_refused_by_name(make, impl: str) -> None:
    problem = make().tidy()
    rows = next(iter(problem.leaves))
    others = {name: x for name, x in problem.leaves.items() if name != rows}
    targets = problem.others["targets"].clamp(min=0)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return problem.call(impl, {rows: x, **others}).loss

    def logprobs(x: torch.Tensor) -> torch.Tensor:
        op = ck.linear_token_logprobs if problem.linear else ck.token_logprobs
        return op(x, *([others["weight"]] if problem.linear else []), targets, impl=impl).sum()

    for function in (loss, logprobs):
        for transform in (torch.func.grad, torch.vmap, torch.func.jacrev):
            x = problem.leaves[rows]
            with pytest.raises(RuntimeError, match=r"^torch\.func: got a call inside a transform"):
                transform(function)(x[None] if transform is torch.vmap else x)


def test_a_spec_is_plain_data() -> None:
    as_json = json.dumps(dataclasses.asdict(EVERYTHING))
    assert ck.LossSpec(**json.loads(as_json)) == EVERYTHING


def test_a_library_of_another_version_is_not_called(monkeypatch) -> None:
    if ck.status()["cpu"] != "available":
        pytest.skip(ck.status()["cpu"])
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    with pytest.raises(OSError, match="libcapo_cpu was built from other sources"):
        native.CpuRows()
