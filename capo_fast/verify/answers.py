"""Checks final answers: Math-Verify (CAPO's verifier) with additional rules, safe for text that a policy wrote.

`answers_equal` is the verdict on one pair; `pool.VerifierPool` runs it, or a user's own function, in killable workers.
The module stays light: a worker imports neither torch nor an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from capo_fast.verify.comparison import MAX_CHARS, Conventions, compare
from capo_fast.verify.extract import extract_answer, reference_answer
from capo_fast.verify.limits import time_limit

TIME_LIMIT_S = 5.0
"""Time limit of one comparison on a main thread."""


@dataclass(frozen=True)
class Judgement:
    r"""The verdict on one response, with the answers compared and the rule.

    >>> judge(r"so \boxed{1/2}", "0.5")
    Judgement(equal=True, answer='1/2', reference='0.5', rule='numbers')
    """

    equal: bool
    answer: str | None
    """The final answer as written in the response; None if there is none."""
    reference: str
    rule: str
    """The name of the rule that decided."""


def answers_equal(
    response: str, reference: str, truncated: bool = False, *, tolerance: float = 0.0, percent: bool = True
) -> bool:
    """True if the response's final answer equals the reference's: `judge(...).equal`."""
    return judge(response, reference, truncated, tolerance=tolerance, percent=percent).equal


def judge(
    response: str, reference: str, truncated: bool = False, *, tolerance: float = 0.0, percent: bool = True
) -> Judgement:
    """Compares the final answer of a solution with the reference. An answer that can't be read is not equal.

    `tolerance` is relative, for pairs with a decimal; 0 means equality to 6 decimals, as in Math-Verify.
    `percent`: both 28 and 0.28 equal 28 %; without it only 0.28 does.

    On a main thread it raises `VerifyTimeout` after `TIME_LIMIT_S`. Other threads can't be interrupted: the caller must
    limit the time, as `VerifierPool` does by killing a worker at its deadline.
    """
    answer, expected = extract_answer(response, truncated), reference_answer(reference)
    if expected and not truncated and response.strip() == reference.strip():
        return Judgement(True, expected, expected, "same text")
    if answer is None:
        return Judgement(False, None, expected, "no answer")
    equal, rule = _decided(answer, expected, tolerance, percent)
    return Judgement(equal, answer, expected, rule)


def same_answer(a: str, b: str, *, tolerance: float = 0.0, percent: bool = True) -> bool:
    """True if two bare answers (not solutions) are equal by the same rules."""
    return _decided(a, b, tolerance, percent)[0]


@lru_cache(maxsize=8192)
def _decided(answer: str, expected: str, tolerance: float, percent: bool) -> tuple[bool, str]:
    """Cached: most answers of a group repeat."""
    if max(len(answer), len(expected)) > MAX_CHARS:
        return answer == expected, "too long"
    with time_limit(TIME_LIMIT_S):
        return compare(answer, expected, Conventions(tolerance, percent))
