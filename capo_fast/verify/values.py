"""Math-Verify on two spelled answers; numbers that it compares to 15 digits are compared exactly.

`latex2sympy` parses, Math-Verify's `verify` compares. Added here: upper case stays upper case; constants are compared
by an exact difference or to 50 digits, so that 2^-54 is not 2^-55; formulas that differ at a point are different, which
avoids most of Math-Verify's simplifications.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import math_verify
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify.grader import should_treat_as_complex
from sympy import (  # type: ignore[import-untyped]
    Eq,
    Expr,
    Float,
    I,
    MatrixBase,
    Pow,
    Rational,
    S,
    Set,
    Symbol,
    UnevaluatedExpr,
    Union,
)

from capo_fast.verify.conditions import MOST, conjunction, same_unknown
from capo_fast.verify.parts import RELATION, split

# Its own time limits are off, and it warns of that: signal.alarm fails outside the main thread.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_SPELLING = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
_READING = ConversionConfig(lowercase_symbols=False)
_OR = re.compile(r"(?:,\s*)?(?<![A-Za-z\\])or(?![A-Za-z])")
_AND = re.compile(r"(?:,\s*)?(?<![A-Za-z\\])and(?![A-Za-z])|,")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\_])(?<!_\{)i(?![A-Za-z_])")
_DERIVATIVE = re.compile(
    r"\\frac\s*\{\s*d\s*(?:\^\{?(\d)\}?)?\s*([A-Za-z])(?:_\{?\w\}?)?\s*\}\s*\{\s*d\s*([A-Za-z])[^{}]*\}"
)
_UNKNOWN_E = re.compile(r"(?<![A-Za-z\\_])(?<!_\{)(?:E(?![A-Za-z_])|[eE]_(?:\{\w+\}|\w))")
"""An E, and an e with an index, which latex2sympy parses as 2.718... or rejects."""
_DIGITS = 50
_POINTS = tuple(Rational(prime, 11) for prime in (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59))


def same_value(answer: str, reference: str, tolerance: float) -> tuple[bool, str]:
    """Compares two values. Returns equality and the rule that decided; False for an answer that can't be parsed."""
    try:
        a, b = parsed(answer), parsed(reference)
    except Exception as error:  # for text that it can't parse the library raises its own, SymPy's and Python's errors
        logging.getLogger(__name__).debug("%r against %r: %r", answer, reference, error)
        return False, "unreadable"
    try:
        sure = _sure(a, b, tolerance)
        if sure is not None:
            return sure, "values"
        return _verified(a, b) or (same_unknown(a, b) and _verified(a.as_set(), b.as_set())), "Math-Verify"
    except Exception as error:
        logging.getLogger(__name__).debug("%r against %r: %r", answer, reference, error)
        return False, "unreadable"


@lru_cache(maxsize=4096)
def parsed(answer: str) -> Any:
    """The SymPy object of an answer; raises the libraries' errors."""
    pieces = _OR.split(answer) if _OR.search(answer) else []
    if len(pieces) > 1:
        return Union(*(piece if isinstance(piece, Set) else piece.as_set() for piece in map(parsed, pieces)))
    pieces = split(answer, _AND, thousands=True)
    if 1 < len(pieces) <= MOST and all(map(RELATION.search, pieces)):
        conditions = conjunction(list(map(parsed, pieces)), listed="," in answer)
        if conditions is not None:
            return conditions
    return _with_real_roots(_single(answer))


def _single(answer: str) -> Any:
    """The SymPy object of an answer without connectives, as latex2sympy reads it."""
    latex = _DERIVATIVE.sub(r" D_{\1\2\3}", normalize_latex(answer, _SPELLING))
    latex = _UNKNOWN_E.sub(lambda match: f" D_{{{''.join(filter(str.isalnum, match[0]))}}}", latex)
    is_complex = should_treat_as_complex(latex) or _IMAGINARY.search(latex) is not None
    value = latex2sympy(
        latex, is_real=not is_complex, convert_degrees=False, normalization_config=None, conversion_config=_READING
    )
    if not is_complex or not isinstance(value, Expr):
        return value
    return value.subs(
        {x: I if x.name == "i" and "_{i" not in latex else Symbol(x.name, real=True) for x in value.free_symbols}
    )


def _verified(a: Any, b: Any) -> bool:
    return bool(math_verify.verify(b, a, timeout_seconds=None, allow_set_relation_comp=True))


def _with_real_roots(value: Any) -> Any:
    """The value with real odd roots of negative numbers, unless it is complex. SymPy has the principal, complex root.

    The root of a difference is written in one of its two ways, as the root of 1 - x is minus the root of x - 1.
    """
    if value.has(I):
        return value
    real = value.replace(_is_negative_root, lambda x: (-1) ** x.exp.p * (-x.base) ** x.exp)
    return value if real == value else _with_real_roots(real)  # it may be the radicand of another root


def _is_negative_root(x: Any) -> bool:
    if not (isinstance(x, Pow) and isinstance(x.exp, Rational) and x.exp.q > 1 and x.exp.q % 2):
        return False
    return bool(x.base.could_extract_minus_sign() if x.base.free_symbols else x.base.is_negative)


def real_constant(text: str) -> Fraction | None:
    """The value of a real constant to 50 digits; None for other text."""
    try:
        value = parsed(text).doit().evalf(_DIGITS)
    except Exception as error:  # as in `same_value`
        logging.getLogger(__name__).debug("%r: %r", text, error)
        return None
    if not isinstance(value, Float | Rational):
        return None
    exact = Rational(value)
    return Fraction(int(exact.p), int(exact.q))


def _sure(a: Any, b: Any, tolerance: float) -> bool | None:
    """Decides by values: constants and matrices of them always, formulas if they differ; None for the rest."""
    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase) and a.shape == b.shape:
        elements = [_sure(x, y, tolerance) for x, y in zip(a.flat(), b.flat(), strict=True)]
        return None if None in elements else all(elements)
    if isinstance(a, Eq) and isinstance(b, Eq) and a.free_symbols != b.free_symbols:
        return False
    if not all(isinstance(x, Expr) and not x.has(UnevaluatedExpr) for x in (a, b)):
        return None
    return _differ(a, b) if a.free_symbols or b.free_symbols else _same_constant(a.doit(), b.doit(), tolerance)


def _same_constant(x: Any, y: Any, tolerance: float) -> bool | None:
    """Exact for fractions, to 40 digits for roots and powers, to 6 decimals if one is a decimal."""
    if isinstance(x, Rational) and isinstance(y, Rational):
        return bool(x == y)
    if not (x.is_number and y.is_number):
        return None
    gap, scale = abs((x - y).evalf(_DIGITS, maxn=4 * _DIGITS)), abs(y.evalf(_DIGITS))
    if not (gap.is_Float or gap.is_Rational) or not scale.is_comparable:
        return None
    if x.has(Float) or y.has(Float):
        return bool(gap <= max(min(5e-7, 1e-4 * scale), tolerance * scale))
    return bool(gap <= Float(10) ** -(_DIGITS - 10) * max(scale, abs(x.evalf(_DIGITS))))


def _differ(a: Any, b: Any) -> bool | None:
    """False if two formulas have different values at positive points; None if unknown."""
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if len(symbols) > len(_POINTS):
        return None
    point = dict(zip(symbols, _POINTS, strict=False))
    x, y = (_with_real_roots(each.doit().subs(point)).evalf(20) for each in (a, b))
    if not (x.is_number and y.is_number) or x.has(S.NaN) or y.has(S.NaN):
        return None
    gap, scale = abs(x - y).evalf(), max(abs(x).evalf(), abs(y).evalf(), Float(1))
    return False if gap.is_comparable and bool(gap > 1e-5 * scale) else None
