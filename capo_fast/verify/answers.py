"""Is the final answer right? Math-Verify (CAPO's verifier) with what it lacks, safe for text that a policy wrote.

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
"""What one comparison may take on a main thread."""


@dataclass(frozen=True)
class Judgement:
    r"""The verdict on one response, and what it was given on.

    >>> judge(r"so \boxed{1/2}", "0.5")
    Judgement(equal=True, answer='1/2', reference='0.5', rule='numbers')
    """

    equal: bool
    answer: str | None
    """The response's final answer as it wrote it; None where it has none."""
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
    """Is the final answer of a solution equal to the reference? False for whatever can't be read.

    `tolerance` is relative and holds where either number is a decimal; 0 is equality to 6 decimals, as in Math-Verify.
    `percent`: 28 and 0.28 both equal 28 %; without it only 0.28 does.

    On a main thread it raises `VerifyTimeout` after `TIME_LIMIT_S`. Elsewhere a thread can't be interrupted: there the
    time limit is the caller's business, as it is for `VerifierPool`, whose parent kills a worker at its deadline.
    """
    answer, expected = extract_answer(response, truncated), reference_answer(reference)
    if expected and not truncated and response.strip() == reference.strip():
        return Judgement(True, expected, expected, "same text")
    if answer is None:
        return Judgement(False, None, expected, "no answer")
    equal, rule = _decided(answer, expected, tolerance, percent)
    return Judgement(equal, answer, expected, rule)


def same_answer(a: str, b: str, *, tolerance: float = 0.0, percent: bool = True) -> bool:
    """Whether two answers, neither read as a solution, are equal by the same rules."""
    return _decided(a, b, tolerance, percent)[0]


@lru_cache(maxsize=8192)
def _decided(answer: str, expected: str, tolerance: float, percent: bool) -> tuple[bool, str]:
    """Remembered: most answers of a group are the same few."""
    if max(len(answer), len(expected)) > MAX_CHARS:
        return answer == expected, "too long"
    with time_limit(TIME_LIMIT_S):
        return compare(answer, expected, Conventions(tolerance, percent))
