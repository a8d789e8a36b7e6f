"""Which implementations the tests of this folder judge, and where.

CAPO_TEST_IMPL (names with commas between them) and CAPO_TEST_DEVICE choose; else all that run here, on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache

import torch

import capo_kernels as ck

DEVICE = torch.device(os.environ.get("CAPO_TEST_DEVICE", "cpu"))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs in Python then, some thousand times slower: tests take fewer and smaller cases."""


@cache
def refusal(impl: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why an implementation doesn't take logits of this dtype on DEVICE, or None."""
    logits = torch.zeros(1, 2, dtype=dtype, device=DEVICE)
    try:
        ck.token_logprobs(logits, torch.zeros(1, device=DEVICE).long(), impl=impl)
    except RuntimeError as error:
        if f"impl='{impl}' cannot run" not in str(error):
            raise
        return str(error)
    return None


def judged() -> list[str]:
    """A requested one that can't run stays in the list: its tests then fail with the reason."""
    asked = os.environ.get("CAPO_TEST_IMPL")
    return asked.split(",") if asked else [impl for impl in ck.status() if refusal(impl) is None]


def judged_by_reference() -> list[str]:
    """All but `reference`, which has an oracle of its own (test_policy_loss.py)."""
    return [impl for impl in judged() if impl != "reference"]


def thinned(cases: Iterable, step: int) -> list:
    """Under the interpreter one case in `step`."""
    return list(cases)[:: step if INTERPRETED else 1]
