"""The value of a simple answer in LaTeX, in floating point: read in microseconds, not in a parser's milliseconds.

Understood:

- numbers, one-letter and Greek variables, with subscripts, `\\pi`, `e`, `i`, and `\\infty` as one more name;
- `+ - * / ^`, `\\cdot`, `\\times`, products without a sign, `\\frac`, `\\sqrt`, mixed numbers (`3\\frac12`), degrees;
- lists and sets, tuples, intervals, `pmatrix` and `bmatrix`, and each inside another.

A variable is a few fixed random numbers. What can be read in two ways (`1/2x`, `2^10`, `1,234`) isn't understood.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

_POINTS = 3
"""At how many values a variable is tried."""
_MAX_DEPTH, _MAX_SCALE = 16, 1e10


class _Unread(ValueError):
    """Not what this module understands."""


@dataclass(frozen=True)
class Scalar:
    """The values [_POINTS] of a formula; `scale` bounds every number on the way to them, and so the rounding error."""

    values: tuple[complex, ...]
    scale: float
    decimal: bool = False


@dataclass(frozen=True)
class Group:
    """Several values: `kind` is "list" (in any order), the two brackets of a tuple or interval, or "2 x 3"."""

    kind: str
    items: tuple[Scalar | Group, ...]


Value = Scalar | Group


_LAYOUT = (
    r"\\(?:left|right|displaystyle|q?quad)(?![A-Za-z])|\\[!,;: ]|\\?\$|[\s~]|\^\s*(?:\\circ(?![a-z])|{\s*\\circ\s*})"
)
_TOKEN = re.compile(
    rf"{_LAYOUT}|(?P<token>\d+(?:\.\d+)?|\.\d+|\\(?:begin|end){{[pb]matrix}}|\\[A-Za-z]+|\\[{{}}\\]|[A-Za-z]+"
    r"|[-+*/^_(){}\[\],&])",
    re.ASCII,
)
_THOUSANDS = re.compile(r"(?<!\d)\d{1,3},\d{3}(?!\d)", re.ASCII)
_VARIABLE = re.compile(
    r"[A-Za-z]|\\(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|infty"
    r"|var(?:epsilon|phi|theta)|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell)"
)
_CONSTANTS = {"\\pi": math.pi, "e": math.e, "i": 1j}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac"}
_TIMES = {"*": "*", "\\cdot": "*", "\\times": "*", "/": "/"}
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "^": operator.pow}
_CLOSES = {"(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",)}
_END = ""


def value_of(text: str) -> Value | None:
    """The value of an answer in LaTeX, None where it isn't understood.

    >>> value_of("\\\\frac{6}{4}").values[0], value_of("(1, 2]").kind, value_of("\\\\sin x")
    ((1.5+0j), '(]', None)
    """
    if _THOUSANDS.search(text):  # one number or two
        return None
    try:
        return _Parser(_tokens(text)).answer()
    except (_Unread, ArithmeticError):
        return None


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Unread
        token, position = match["token"] or "", match.end()
        if token.isalpha() and (len(token) > 2 or token in ("pi", "ln")):  # a word
            raise _Unread
        tokens += token if token.isalpha() else [token] * bool(token)
    return tokens


class _Parser:
    """Recursive descent that computes as it reads: list, sum, product, power, factor."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.position, self.depth = [*tokens, _END], 0, 0

    @property
    def next(self) -> str:
        return self.tokens[self.position]

    def take(self, *wanted: str) -> str:
        token = self.next
        if token == _END or (wanted and token not in wanted):
            raise _Unread
        self.position += 1
        return token

    def taken(self, token: str) -> bool:
        found = self.next == token
        self.position += found
        return found

    def answer(self) -> Value:
        items = self.items(",")
        if self.next != _END:
            raise _Unread
        return items[0] if len(items) == 1 else Group("list", items)

    def items(self, separator: str) -> tuple[Value, ...]:
        found = [self.sum()]
        while self.taken(separator):
            found.append(self.sum())
        return tuple(found)

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Unread
        sign = self.take() if self.next in ("+", "-") else ""
        total = _computed(sign, _constant(0), self.product()) if sign else self.product()
        while self.next in ("+", "-"):
            total = _computed(self.take(), total, self.product())
        self.depth -= 1
        return total

    def product(self) -> Value:
        result, divided = self.power(), False
        while (
            self.next in _TIMES or self.next in {"\\sqrt", "\\pi", "("} | _FRACTIONS or _VARIABLE.fullmatch(self.next)
        ):
            sign = _TIMES[self.take()] if self.next in _TIMES else ""
            if divided and not sign:  # 1/2x
                raise _Unread
            divided = divided or sign == "/"
            result = _computed(sign or "*", result, self.power())
        return result

    def power(self) -> Value:
        base = self.factor()
        return _computed("^", base, self.argument()) if self.taken("^") else base

    def factor(self) -> Value:
        token = self.next
        if token[:1].isdigit() or token[:1] == ".":
            return self.number()
        if token in _CLOSES:
            return self.bracketed()
        if token in _FRACTIONS:
            return self.fraction()
        if token == "\\sqrt":
            return self.root()
        return self.matrix() if token.startswith("\\begin") else self.argument()

    def number(self) -> Value:
        digits = self.take()
        if len(digits) > 15 or self.next == "_":  # 1011_2
            raise _Unread
        number, start = _constant(float(digits), decimal="." in digits), self.position
        if digits.isdigit() and self.next in _FRACTIONS:
            part = self.fraction()
            if all(token in "{}" or token.isdigit() for token in self.tokens[start + 1 : self.position]):
                return _computed("+", number, part)
            self.position = start
        return number

    def bracketed(self) -> Value:
        opens = self.take()
        items = self.items(",")
        kind = opens + self.take(*_CLOSES[opens])
        if len(items) == 1 and kind == "()":
            return items[0]
        return Group("list" if opens == "\\{" else kind, items)

    def fraction(self) -> Value:
        self.take()
        digits = self.next
        if digits.isdigit() and len(digits) == 2:  # \frac12
            self.take()
            return _computed("/", _constant(int(digits[0])), _constant(int(digits[1])))
        top = self.argument()
        return _computed("/", top, self.argument())

    def root(self) -> Value:
        self.take()
        index = 2
        if self.taken("["):
            index = int(self.take("2", "3", "4", "5", "6"))
            self.take("]")
        radicand = self.argument()
        if index > 2 and isinstance(radicand, Scalar) and any(x.imag or x.real < 0 for x in radicand.values):
            raise _Unread  # the real root or the principal one
        return _computed("^", radicand, _constant(1 / index))

    def matrix(self) -> Value:
        end = self.take().replace("begin", "end")
        rows = [self.items("&")]
        while self.taken("\\\\"):
            rows.append(self.items("&"))
        self.take(end)
        return Group(f"{len(rows)} x {len(rows[0])}", tuple(item for row in rows for item in row))

    def argument(self) -> Value:
        """What LaTeX takes as one: a group in braces, one digit, one letter."""
        if self.taken("{"):
            value = self.sum()
            self.take("}")
            return value
        token = self.take()
        if token.isdigit() and len(token) == 1:
            return _constant(int(token))
        if token in _CONSTANTS and self.next != "_":
            return _constant(_CONSTANTS[token])
        if not _VARIABLE.fullmatch(token):
            raise _Unread
        return _variable(token + self.subscript() if self.taken("_") else token)

    def subscript(self) -> str:
        start = self.position
        if self.taken("{"):
            while self.take() != "}":
                pass
        elif len(self.take()) > 1:
            raise _Unread
        return "_" + "".join(self.tokens[start : self.position]).strip("{}")


def _constant(value: complex, decimal: bool = False) -> Scalar:
    return Scalar((complex(value),) * _POINTS, max(1.0, abs(value)), decimal)


@lru_cache(maxsize=1024)
def _variable(name: str) -> Scalar:
    random = Random(name)
    return Scalar(tuple(complex(random.choice((-1, 1)) * random.uniform(0.5, 1.5)) for _ in range(_POINTS)), 2.0)


def _computed(sign: str, a: Value, b: Value) -> Scalar:
    if not (isinstance(a, Scalar) and isinstance(b, Scalar)):
        raise _Unread
    values = tuple(_OPERATIONS[sign](x, y) for x, y in zip(a.values, b.values, strict=True))
    scale = max(a.scale, b.scale, *map(abs, values))
    if not scale <= _MAX_SCALE:
        raise _Unread
    return Scalar(values, scale, a.decimal or b.decimal)
