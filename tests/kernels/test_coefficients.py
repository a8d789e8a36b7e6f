"""LossSpec.on: coefficients on the device. A captured CUDA graph reads them at each replay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calls import assert_same_bits, call
from implementations import DEVICE
from problems import linear_problem, logits_problem

import capo_kernels as ck

FIRST = ck.LossSpec(kl_coef=0.1, entropy_coef=0.1, is_mode="mask", dual_clip=5.0, temperature=0.7, softcap=20.0)
SECOND = replace(
    FIRST, clip_low=0.1, clip_high=0.4, dual_clip=1.5, kl_coef=0.3, entropy_coef=-0.2, is_low=0.6, is_high=1.5
)


@pytest.mark.parametrize("make", [logits_problem, linear_problem])
@pytest.mark.parametrize("objective", ["ppo", "cispo"])
def test_coefficients_on_the_device_replace_those_of_the_call(make, objective: str, fused: str) -> None:
    changes = {"objective": objective} if objective == "ppo" else {"objective": objective, "dual_clip": None}
    first, second = replace(FIRST, **changes), replace(SECOND, **changes)
    on_device = first.on(DEVICE)
    problem = make(second)
    assert_same_bits(call(problem, fused, spec=on_device), call(problem, fused, spec=first))
    on_device.coefficients.copy_(second.numbers)
    found = call(problem, fused, spec=on_device)
    assert_same_bits(found, call(problem, fused))
    assert found["loss"] != call(problem, fused, spec=first)["loss"]


def test_a_changed_spec_has_no_device_coefficients() -> None:
    assert replace(FIRST.on("cpu"), kl_coef=0.0).coefficients is None


@pytest.mark.parametrize("make", [logits_problem, linear_problem])
def test_an_implementation_that_cannot_read_device_coefficients_raises(make) -> None:
    with pytest.raises(RuntimeError, match="impl='reference' cannot run: it does not read coefficients on a device"):
        make(FIRST).call("reference", spec=FIRST.on(DEVICE))
    with pytest.raises(ValueError, match=r"^spec\.coefficients: got device meta, want"):
        make(FIRST).call("auto", spec=FIRST.on(torch.device("meta")))
