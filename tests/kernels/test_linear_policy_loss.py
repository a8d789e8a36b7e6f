"""The loss on a linear head is the loss on its logits."""

from __future__ import annotations

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
    """A case whose float64 logits are those of the head, so that its ratios are near 1."""
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
