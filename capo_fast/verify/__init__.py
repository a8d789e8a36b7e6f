"""Checking final answers: `answers_equal`, `extract_answer`, `VerifierPool`."""

from typing import Any

from capo_fast.verify.extract import extract_answer
from capo_fast.verify.functions import Item, RewardFunction, Verdict, is_right, load_function
from capo_fast.verify.pool import VerifierError, VerifierPool

__all__ = [
    "Item",
    "RewardFunction",
    "Verdict",
    "VerifierError",
    "VerifierPool",
    "answers_equal",
    "extract_answer",
    "is_right",
    "load_function",
]


def __getattr__(name: str) -> Any:
    # Lazy: SymPy takes a second to import, and only the workers of the pool need it.
    if name == "answers_equal":
        from capo_fast.verify.answers import answers_equal

        return answers_equal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
