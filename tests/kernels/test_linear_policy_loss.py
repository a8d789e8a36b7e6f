"""The loss on a linear head is the loss on its logits."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import random_case

import capo_kernels as ck

SPECS = [
    ck.LossSpec(),
    ck.LossSpec(kl_coef=0.3, entropy_coef=0.1, temperature=0.7, softcap=3.0, dual_clip=1.5),
    ck.LossSpec(objective="cispo", ratio="sequence", kl_coef=0.3, kl_estimator="k2", kl_ratio=True),
    ck.LossSpec(objective="reinforce", is_mode="mask", is_level="sequence", is_low=0.5, entropy_coef=-0.1),
]


def problem(dtype: torch.dtype = torch.float64, seed: int = 0, hidden: int = 3):
    """A case whose logits (in float64) are those of the head, so that its ratios are near 1."""
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, generator=g, dtype=torch.float64) for size in ((8, hidden), (5, hidden), (5,))]
    case = random_case(seed)
    logp = torch.nn.functional.linear(*parts).log_softmax(-1).gather(1, torch.tensor(case.targets)[:, None])[:, 0]
    arguments = case.arguments(torch.float64 if dtype == torch.float64 else torch.float32)
    for name in ("old_logprobs", "ref_logprobs", "rollout_logprobs"):
        arguments[name] = (logp + 0.3 * torch.randn(8, generator=g, dtype=torch.float64)).to(arguments[name].dtype)
    return [x.to(dtype).requires_grad_() for x in parts], torch.tensor(case.targets), arguments


@pytest.mark.parametrize("chunk", [1, 3, 8, None])
@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_equals_the_logits_path(spec: ck.LossSpec, chunk: int | None) -> None:
    (hidden, weight, bias), targets, arguments = problem()
    logits = torch.nn.functional.linear(hidden, weight, bias)
    want = ck.policy_loss(logits, targets, spec=spec, **arguments)
    got = ck.linear_policy_loss(hidden, weight, targets, bias=bias, chunk_tokens=chunk, spec=spec, **arguments)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(got.logprobs, want.logprobs)
    torch.testing.assert_close(got.entropy, want.entropy)
    for key, value in want.metrics.items():
        torch.testing.assert_close(got.metrics[key], value, equal_nan=True, msg=key)
    eager = torch.autograd.grad(3 * want.loss, (hidden, weight, bias))
    assert min(x.abs().max() for x in eager) > 1e-3
    chunked = torch.autograd.grad(3 * got.loss, (hidden, weight, bias))
    for grad, wanted in zip(chunked, eager, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    parts, targets, arguments = problem(seed=1)
    spec = ck.LossSpec(kl_coef=0.3, kl_ratio=True, entropy_coef=0.1, is_mode="truncate", is_high=1.1)

    def loss(hidden, weight, bias):
        return ck.linear_policy_loss(hidden, weight, targets, bias=bias, chunk_tokens=3, spec=spec, **arguments).loss

    assert torch.autograd.gradcheck(loss, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_worse_than_torch_in_the_same_dtype(dtype: torch.dtype) -> None:
    """Error against float64 at most twice that of eager PyTorch in this dtype, plus its rounding unit."""
    parts, targets, arguments = problem(dtype, hidden=64)
    spec = ck.LossSpec(kl_coef=0.1, entropy_coef=0.05)
    wide = [x.detach().double().requires_grad_() for x in parts]
    doubles = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}

    def eager(hidden, weight, bias, beside):
        return ck.policy_loss(torch.nn.functional.linear(hidden, weight, bias), targets, spec=spec, **beside).loss

    got = ck.linear_policy_loss(parts[0], parts[1], targets, bias=parts[2], chunk_tokens=3, spec=spec, **arguments).loss
    losses = (got, eager(*parts, arguments), eager(*wide, doubles))
    ours, torchs, exact = (torch.autograd.grad(x, y) for x, y in zip(losses, (parts, parts, wide), strict=True))
    tiny = {torch.float32: 2**-21, torch.bfloat16: 2**-8}[dtype]
    for a, b, c in zip(ours, torchs, exact, strict=True):
        assert a.dtype == dtype
        assert (a.double() - c).norm() <= 2 * (b.double() - c).norm() + tiny * c.norm()


def test_hidden_rows_of_weight_0_are_not_read() -> None:
    (hidden, weight, bias), targets, arguments = problem(seed=9)
    dead = arguments["weights"] == 0
    assert 0 < dead.sum() < 8
    spec = ck.LossSpec(kl_coef=0.1, entropy_coef=0.1, ratio="sequence")

    def run(rows, targets):
        rows = rows.detach().clone().requires_grad_()
        result = ck.linear_policy_loss(rows, weight, targets, bias=bias, chunk_tokens=3, spec=spec, **arguments)
        return result.loss, torch.autograd.grad(result.loss, (rows, weight, bias))

    poisoned = hidden.detach().clone()
    poisoned[dead] = math.nan
    loss, grads = run(hidden, targets)
    poisoned_loss, poisoned_grads = run(poisoned, targets.masked_fill(dead, -100))
    assert torch.equal(loss, poisoned_loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, poisoned_grads, strict=True))
    assert grads[0][dead].abs().max() == 0


def test_a_frozen_head_and_nothing_to_train() -> None:
    (hidden, weight, _), targets, arguments = problem()
    want = ck.linear_policy_loss(hidden, weight, targets, **arguments)
    (want_grad,) = torch.autograd.grad(want.loss, hidden)
    weight.requires_grad_(False)
    frozen = ck.linear_policy_loss(hidden, weight, targets, **arguments)
    frozen.loss.backward()
    assert weight.grad is None
    assert torch.equal(hidden.grad, want_grad)
    result = ck.linear_policy_loss(hidden.detach(), weight, targets, **arguments)
    assert not result.loss.requires_grad
    assert torch.equal(result.loss, want.loss)


def test_no_tokens() -> None:
    hidden, weight = torch.zeros(0, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    none = torch.zeros(0)
    result = ck.linear_policy_loss(hidden, weight, torch.zeros(0, dtype=torch.int64), weights=none, advantages=none)
    result.loss.backward()
    assert result.loss == 0
    assert hidden.grad.shape == (0, 3)
    assert weight.grad.abs().max() == 0
