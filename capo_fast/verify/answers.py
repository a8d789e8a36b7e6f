"""Is the final answer right? The rule verifier (CAPO: Math-Verify), made safe for text that a policy wrote.

`answers_equal` is the verdict on one pair; `pool.VerifierPool` runs it, or a user's own function, in killable workers.
The module stays light: a worker imports neither torch nor an engine.
"""

from __future__ import annotations

import logging
import math
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import math_verify
from sympy import Expr, UnevaluatedExpr  # type: ignore[import-untyped]

from capo_fast.verify.compare import compare
from capo_fast.verify.extract import extract_answer, reference_answer
from capo_fast.verify.pool import VerifyTimeout

TIME_LIMIT_S = 5.0
"""What one comparison may take on a main thread."""
_MAX_CHARS = 1_000

# It warns that its own time limits are off: they rest on signal.alarm, which fails off the main thread.
logging.getLogger("math_verify").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Judgement:
    """The verdict on one response, and what it was given on.

    >>> judge("so \\boxed{1/2}", "0.5")
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
    if answer is None:
        return Judgement(False, None, expected, "no answer")
    equal, rule = _decided(answer, expected, tolerance, percent)
    return Judgement(equal, answer, expected, rule)


def same_answer(a: str, b: str) -> bool:
    """Whether two answers, neither read as a solution, are equal by the same rules."""
    return _decided(a, b, 0.0, True)[0]


@lru_cache(maxsize=8192)
def _decided(answer: str, expected: str, tolerance: float, percent: bool) -> tuple[bool, str]:
    return _same(answer, expected), "comparison"


def _same(predicted: str, expected: str) -> bool:
    if max(len(predicted), len(expected)) > _MAX_CHARS:
        return predicted == expected
    keys = _key(predicted), _key(expected)
    if keys[0] == keys[1]:
        return keys[0] != ""
    a, b = map(_number, keys)
    if a is not None and b is not None:
        exact = "." not in keys[0] + keys[1]
        return a == b if exact else abs(a - b) <= min(Fraction(1, 2_000_000), abs(b) / 10_000)
    sure = compare(predicted, expected)
    if sure is not None:
        return sure
    number_and_no_number = (a is None) != (b is None) and _NO_NUMBER.match(keys[0] if a is None else keys[1])
    if number_and_no_number or _explodes(predicted) or _explodes(expected):
        return False
    with _time_limit(TIME_LIMIT_S):
        return _math_verify(predicted, expected)


@lru_cache(maxsize=4096)
def _math_verify(predicted: str, expected: str) -> bool:
    try:
        gold, target = _parsed(expected), _parsed(predicted)
        if gold and target and _values_differ(gold[0], target[0]):
            return False
        return bool(math_verify.verify(gold, target, timeout_seconds=None))
    except Exception as error:  # whatever can't be read isn't known to be right
        logging.getLogger(__name__).debug("%r against %r: %r", predicted, expected, error)
        return False


@lru_cache(maxsize=1024)
def _parsed(answer: str) -> Any:
    return math_verify.parse(f"${_DOLLAR.sub(' ', answer)}$", parsing_timeout=None)


def _values_differ(a: Any, b: Any) -> bool:
    """Settles at once what Math-Verify would try to simplify: two constants far apart (10 % may equal 10)."""
    if not all(isinstance(x, Expr) and x.is_number and not x.has(UnevaluatedExpr) for x in (a, b)):
        return False
    x, y = complex(a.evalf(15)), complex(b.evalf(15))
    return abs(x - y) > 1e-4 * max(1.0, abs(y))


# ---- two spellings of one answer ----

_DOLLAR = re.compile(r"\\?\$")
_SPELLINGS = [
    (re.compile(r"\\!\s*|\\,|\\(?:left|right)(?![a-z])|\\displaystyle|\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-z])"), ""),
    (re.compile(r"\\?\$|\\[;: ]|\\q?quad(?![a-z])|~"), " "),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf)|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), ","),
    (re.compile(r"\s+(?!\d)|(?<![\d,])\s+|(?<=,)\s+(?!\d{3}(?!\d))"), ""),
    (re.compile(r"\.$|^\((?=\w\)$)|(?<=^\(\w)\)$"), ""),
]


def _key(answer: str) -> str:
    """One spelling for what LaTeX spells in many: without layout, fonts, dollars, degrees and most white space."""
    for pattern, replacement in _SPELLINGS:
        answer = pattern.sub(replacement, answer)
    return answer.casefold() if answer.isalpha() and len(answer) > 1 else answer


_DECIMAL = r"-?(?:\d{1,3}(?:,\d{3})+|\d{1,40})?(?:\.\d{1,40}|\.)?"
_EXPONENT = r"(?:[eE]([-+]?\d{1,3})|\\(?:times|cdot)10\^(?:\{(-?\d{1,3})\}|(\d)))"
_SCIENTIFIC = re.compile(rf"(-?\d{{1,40}}(?:\.\d{{0,40}})?){_EXPONENT}", re.ASCII)
_NUMBER = re.compile(rf"({_DECIMAL})(?:/(\d{{1,40}}))?|(-?)\\frac\{{(-?\d{{1,40}})\}}\{{(\d{{1,40}})\}}", re.ASCII)
_NO_NUMBER = re.compile(r"[a-z][a-z0-9]*\Z|[(\[].*,.*[)\]]\Z", re.IGNORECASE | re.ASCII | re.DOTALL)


def _number(key: str) -> Fraction | None:
    if match := _SCIENTIFIC.fullmatch(key):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or match[4])
    match = _NUMBER.fullmatch(key)
    if match is None:
        return None
    top = match[1] if match[4] is None else match[3] + match[4]
    if not re.search(r"\d", top):  # "/2"
        return None
    bottom = int(match[2] or match[5] or 1)
    return Fraction(top.replace(",", "")) / bottom if bottom else None


# ---- limits ----

_POWER = re.compile(r"(?:\^|\*\*)\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)|[-+\w.*^\\]*)")
_COMBINATORIAL = re.compile(r"!|binom|choose|prod|sum|gcd|lcm")
_FACTORIAL_TOWER = re.compile(r"![!)}\]\s]*!")
_MAX_EXPONENT = 10_000


def _explodes(answer: str) -> bool:
    """True where working the answer out could take a number of astronomical length.

    One long multiplication in C can't be interrupted by any signal, so such an answer has to be refused before it is
    read. A generous bound: the product of an exponent's integers, to the power of the largest where it has a power.
    """
    bounds = [_exponent_bound(exponent) for exponent in _POWER.findall(answer)]
    if any(bound > _MAX_EXPONENT for bound in bounds) or math.prod(bounds) > 1000 * _MAX_EXPONENT:
        return True
    if _FACTORIAL_TOWER.search(answer):
        return True
    large = any(len(digits) > 5 for digits in re.findall(r"\d+", answer))
    return _COMBINATORIAL.search(answer) is not None and (large or ("sum" not in answer and max(bounds, default=0) > 5))


def _exponent_bound(exponent: str) -> float:
    integers = [min(int(digits[:9]), 10**9) for digits in re.findall(r"\d+", exponent) if int(digits[:9]) > 1]
    bound = math.prod(integers[:20])
    if "^" not in exponent and "**" not in exponent:
        return max(1, bound)
    return math.inf if max(integers, default=1) > 64 else float(max(1, bound)) ** max(integers, default=1)


class _Alarm(BaseException):
    """No Exception, or one of the many `except Exception` in the libraries would swallow it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: object) -> None:
        raise _Alarm

    before, (left, interval) = signal.signal(signal.SIGALRM, ring), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Alarm:
        raise VerifyTimeout(f"the comparison took more than {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)
