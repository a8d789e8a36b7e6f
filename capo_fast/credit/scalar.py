"""What the formulas of an answer are worked out in: numbers that know how far rounding may have moved them.

A variable is a few fixed numbers, the last of them a natural one. Formulas that differ at all of them differ,
whether their variables stand for real or for natural numbers.
"""

from __future__ import annotations

import cmath
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

POINTS = 4
"""At how many values a variable is tried."""
_MAX_SCALE = 1e300
_NOISE = 1e-10
"""A number below this share of those that it was made of may be nothing but rounding."""


class Unread(ValueError):
    """Not what this package understands, or not what floating point can tell."""


@dataclass(frozen=True)
class Scalar:
    """The values [POINTS] of a formula; `scales` bound every number on the way to each, and so its rounding error."""

    values: tuple[complex, ...]
    scales: tuple[float, ...]
    rough: bool = False
    """A decimal or a function is in it: never surely equal to anything."""


_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "^": operator.pow}


def constant(value: complex, rough: bool = False) -> Scalar:
    return Scalar((complex(value),) * POINTS, (max(1.0, abs(value)),) * POINTS, rough)


@lru_cache(maxsize=1024)
def variable(name: str) -> Scalar:
    random = Random(name)
    reals = [random.choice((-1, 1)) * random.uniform(0.5, 1.5) for _ in range(POINTS - 1)]
    values = (*map(complex, reals), complex(random.randint(11, 26)))
    return Scalar(values, tuple(max(1.0, abs(value)) for value in values))


def computed(sign: str, a: Scalar, b: Scalar) -> Scalar:
    """`a sign b`. Raises Unread or ArithmeticError."""
    if sign == "/":
        _refuse_noise(b)
    elif sign == "^" and not all(y.imag == 0 <= y.real == round(y.real) for y in b.values):
        _refuse_noise(a)
    return _of([_OPERATIONS[sign](x, y) for x, y in zip(a.values, b.values, strict=True)], a, b)


def applied(name: str, *arguments: Scalar) -> Scalar:
    """A function of `FUNCTIONS` at its arguments. Raises Unread, ValueError (outside its domain) or ArithmeticError."""
    made = FUNCTIONS[name](*arguments)
    return Scalar(made.values, made.scales, rough=True)


def is_constant(scalar: Scalar) -> bool:
    return len(set(scalar.values)) == 1


def _of(values: list[complex], *made_of: Scalar) -> Scalar:
    if not all(abs(value) <= _MAX_SCALE for value in values):
        raise Unread
    scales = tuple(map(max, *(each.scales for each in made_of), map(abs, values)))
    return Scalar(tuple(values), scales, any(each.rough for each in made_of))


def _refuse_noise(a: Scalar) -> None:
    """Neither the number itself nor its side of a branch cut may be left to rounding; a plain 0 is what it is."""
    for x, scale in zip(a.values, a.scales, strict=True):
        if 0 < abs(x) < _NOISE * scale or 0 < abs(x.imag) < _NOISE * scale:
            raise Unread


# ---- functions ----


def _each(fn: Callable[[complex], complex]) -> Callable[[Scalar], Scalar]:
    """A function of complex numbers, point by point."""

    def at_all(a: Scalar) -> Scalar:
        _refuse_noise(a)
        return _of([complex(fn(complex(x.real, x.imag or 0.0))) for x in a.values], a)  # no -0.0: one side of a cut

    return at_all


def _real(fn: Callable[[float], float]) -> Callable[[Scalar], Scalar]:
    """A function of real numbers that treats what rounding moved from an integer as that integer."""

    def at_all(a: Scalar) -> Scalar:
        if any(x.imag for x in a.values):
            raise Unread
        reals = [(x.real, float(round(x.real)), scale) for x, scale in zip(a.values, a.scales, strict=True)]
        return _of([complex(fn(n if abs(x - n) <= _NOISE * scale else x)) for x, n, scale in reals], a)

    return at_all


_sin, _cos = _each(cmath.sin), _each(cmath.cos)
_factorial = _real(lambda x: math.gamma(x + 1))


def _binomial(n: Scalar, k: Scalar) -> Scalar:
    made = computed("/", _factorial(n), computed("*", _factorial(k), _factorial(computed("-", n, k))))
    return Scalar(made.values, tuple(max(1.0, abs(x)) for x in made.values))  # a quotient of products loses no digits


FUNCTIONS: dict[str, Callable[..., Scalar]] = {
    "\\sin": _sin,
    "\\cos": _cos,
    "\\tan": lambda a: computed("/", _sin(a), _cos(a)),
    "\\cot": lambda a: computed("/", _cos(a), _sin(a)),
    "\\sec": lambda a: computed("/", constant(1), _cos(a)),
    "\\csc": lambda a: computed("/", constant(1), _sin(a)),
    "\\arcsin": _each(cmath.asin),
    "\\arccos": _each(cmath.acos),
    "\\arctan": _each(cmath.atan),
    "\\exp": _each(cmath.exp),
    "\\ln": _each(cmath.log),
    "\\log": lambda a, base: computed("/", _each(cmath.log)(a), _each(cmath.log)(base)),
    "\\lfloor": _real(math.floor),
    "\\lceil": _real(math.ceil),
    "!": _factorial,
    "\\binom": _binomial,
}
