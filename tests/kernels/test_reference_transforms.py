"""Transforms of torch.func around `reference`: `functional_call` is right, the others are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

import capo_kernels as ck

TARGETS = torch.tensor([1, 4, 0])
HIDDEN, WEIGHT = torch.randn(3, 4), torch.randn(5, 4)
OTHERS = {"weights": torch.full((3,), 1 / 3), "advantages": torch.tensor([1.0, -0.5, 2.0]), "impl": "reference"}


def loss(logits: torch.Tensor) -> torch.Tensor:
    return ck.policy_loss(logits, TARGETS, **OTHERS).loss


def linear_loss(hidden: torch.Tensor) -> torch.Tensor:
    return ck.linear_policy_loss(hidden, WEIGHT, TARGETS, **OTHERS).loss


def linear_logprobs(hidden: torch.Tensor) -> torch.Tensor:
    return ck.linear_token_logprobs(hidden, WEIGHT, TARGETS, impl="reference").sum()


def test_functional_call_with_backward() -> None:
    head = torch.nn.Linear(4, 5)
    loss(head(HIDDEN)).backward()
    parameters = {name: p.detach().requires_grad_() for name, p in head.named_parameters()}
    loss(functional_call(head, parameters, (HIDDEN,))).backward()
    assert torch.equal(parameters["weight"].grad, head.weight.grad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: grad(loss)(torch.zeros(3, 5)),
        lambda: vmap(loss)(torch.zeros(2, 3, 5)),
        lambda: jvp(loss, (torch.zeros(3, 5),), (torch.ones(3, 5),)),
        lambda: grad(linear_loss)(HIDDEN),
        lambda: vmap(linear_logprobs)(torch.zeros(2, 3, 4)),
    ],
)
def test_unsupported_transforms_are_refused_by_name(call: Callable) -> None:
    with pytest.raises(RuntimeError, match=r"^torch\.func: got a call inside a transform"):
        call()
