"""Limits for comparisons of hostile answers: a bound on their numbers, and a time limit."""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from capo_fast.verify.functions import VerifyTimeout

_POWER = re.compile(r"(?:\^|\*\*)\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)|[-+]?[\w.\\]*(?:(?:\^|\*\*)[-+]?[\w.\\]*)*)")
_COMBINATORIAL = re.compile(r"!|binom|choose|prod|sum|gcd|lcm")
_FACTORIAL_TOWER = re.compile(r"![!)}\]\s]*!")
_MAX_EXPONENT, _MAX_DEPTH = 10_000, 30


def explodes(answer: str) -> bool:
    """True if evaluating the answer could need an astronomically long number, or if it is nested too deeply.

    No signal can interrupt one long multiplication in C, so such an answer must be rejected before it is parsed.
    The bound is generous: the product of an exponent's integers, to the power of the largest if it has a power.
    """
    if _depth(answer) > _MAX_DEPTH:
        return True
    bounds = [_exponent_bound(exponent) for exponent in _POWER.findall(answer)]
    if any(bound > _MAX_EXPONENT for bound in bounds) or math.prod(bounds) > 1000 * _MAX_EXPONENT:
        return True
    if _FACTORIAL_TOWER.search(answer):
        return True
    large = any(len(digits) > 5 for digits in re.findall(r"\d+", answer))
    return _COMBINATORIAL.search(answer) is not None and (large or ("sum" not in answer and max(bounds, default=0) > 5))


def _depth(answer: str) -> int:
    """Nesting depth of brackets: the parser's time grows fast with it."""
    deepest = depth = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _exponent_bound(exponent: str) -> float:
    integers = [min(int(digits[:9]), 10**9) for digits in re.findall(r"\d+", exponent) if int(digits[:9]) > 1]
    bound = math.prod(integers[:20])
    if "^" not in exponent and "**" not in exponent:
        return max(1, bound)
    return math.inf if max(integers, default=1) > 64 else float(max(1, bound)) ** max(integers, default=1)


class _Alarm(BaseException):
    """Not an Exception: one of the many `except Exception` in the libraries would catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
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
