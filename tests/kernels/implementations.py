"""The implementations that the tests of this folder check, and their device.

CAPO_TEST_IMPL (names separated by commas) and CAPO_TEST_DEVICE choose; by default all that run here, on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache

import torch

import capo_kernels as ck

DEVICE = torch.device(os.environ.get("CAPO_TEST_DEVICE", "cpu"))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton then runs in Python, about a thousand times slower, so tests have fewer and smaller cases."""


@cache
def refusal(impl: str, dtype: torch.dtype = torch.float32) -> str | None:
    """The reason why an implementation refuses logits of this dtype on DEVICE, or None."""
    logits = torch.zeros(1, 2, dtype=dtype, device=DEVICE)
    try:
        ck.token_logprobs(logits, torch.zeros(1, device=DEVICE).long(), impl=impl)
    except RuntimeError as error:
        if f"impl='{impl}' cannot run" not in str(error):
            raise
        return str(error)
    return None


def implementations() -> list[str]:
    """Implementations to test. A requested one that cannot run stays in the list: its tests fail with the reason."""
    requested = os.environ.get("CAPO_TEST_IMPL")
    return requested.split(",") if requested else [impl for impl in ck.status() if refusal(impl) is None]


def implementations_but_reference() -> list[str]:
    """Implementations to compare with `reference`, which has its own oracle (test_policy_loss.py)."""
    return [impl for impl in implementations() if impl != "reference"]


def thinned(cases: Iterable, step: int) -> list:
    """Every `step`-th case under the interpreter, else all cases."""
    return list(cases)[:: step if INTERPRETED else 1]
