"""The value of a simple answer in LaTeX, in floating point: read in microseconds, not in a parser's milliseconds.

Understood:

- numbers, one-letter and Greek variables, with subscripts, `\\pi`, `e`, `i`, and `\\infty` as one more name;
- `+ - * / ^ !`, `\\cdot`, `\\times`, products without a sign, `\\frac`, `\\sqrt`, `3\\frac12`, degrees;
- `\\sin` and its like, `\\arcsin`, `\\exp`, `\\ln`, `\\log_b`, `\\binom`, `\\lfloor` and `\\lceil`, one `\\pm`;
- lists and sets, tuples, intervals and their unions, `pmatrix` and `bmatrix`, and each inside another.

What can be read in two ways (`1/2x`, `2^10`, `1,234`, `f(2)`, `\\sin x/2`) isn't understood.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from capo_fast.credit.scalar import FUNCTIONS, Scalar, Unread, applied, computed, constant, variable

_MAX_DEPTH = 16


@dataclass(frozen=True)
class Group:
    """Several values: `kind` is "list" (in any order), the two brackets of a tuple or interval, "\\cup" or "2 x 3"."""

    kind: str
    items: tuple[Scalar | Group, ...]


Value = Scalar | Group


_LAYOUT = (
    r"\\(?:left|right|displaystyle|q?quad)(?![A-Za-z])|\\[!,;: ]|\\?\$|[\s~]|\^\s*(?:\\circ(?![a-z])|{\s*\\circ\s*})"
)
_TOKEN = re.compile(
    rf"{_LAYOUT}|(?P<token>\d+(?:\.\d*)?|\.\d+|\\(?:begin|end){{[pb]matrix}}|\\[A-Za-z]+|\\[{{}}\\]|[A-Za-z]+"
    r"|[-+*/^_(){}\[\],&!])",
    re.ASCII,
)
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<!\d)\d{1,3},\d{3}(?!\d)", re.ASCII)
_VARIABLE = re.compile(
    r"[A-Za-z]|\\(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|infty"
    r"|var(?:epsilon|phi|theta)|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell)"
)
_CONSTANTS = {"\\pi": math.pi, "e": math.e, "i": 1j}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac"}
_TIMES = {"*": "*", "\\cdot": "*", "\\times": "*", "/": "/"}
_FLOORS = {"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_BINOMIALS = {"\\binom", "\\dbinom", "\\tbinom"}
_NAMED = FUNCTIONS.keys() - _FLOORS.keys() - {"!", "\\binom"}
_BARE = {"\\sqrt", "\\pi"} | _FRACTIONS
_STARTS = _BARE | {"("} | _FLOORS.keys() | _BINOMIALS | _NAMED
_CLOSES = {"(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",)}
_END = ""


def value_of(text: str) -> Value | None:
    """The value of an answer in LaTeX, None where it isn't understood.

    >>> value_of("\\\\frac{6}{4}").values[0], value_of("(1, 2]").kind, value_of("\\\\gcd(4, 6)")
    ((1.5+0j), '(]', None)
    """
    if _THOUSANDS.search(text):  # one number or two
        return None
    try:
        if len(_PLUS_MINUS.findall(text)) == 1:
            return _either(*(_Parser(_tokens(_PLUS_MINUS.sub(sign, text))).answer() for sign in "+-"))
        return _Parser(_tokens(text)).answer()
    except (ValueError, ArithmeticError):
        return None


def _either(*answers: Value) -> Group:
    """The list of what the answers hold, be they values or lists."""
    parts = [each.items if isinstance(each, Group) and each.kind == "list" else (each,) for each in answers]
    return Group("list", tuple(item for part in parts for item in part))


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unread
        token, position = match["token"] or "", match.end()
        if token.isalpha() and (len(token) > 2 or token in ("pi", "ln")):  # a word
            raise Unread
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
            raise Unread
        self.position += 1
        return token

    def taken(self, token: str) -> bool:
        found = self.next == token
        self.position += found
        return found

    def answer(self) -> Value:
        items = self.items(",")
        if self.next != _END:
            raise Unread
        return items[0] if len(items) == 1 else Group("list", items)

    def items(self, separator: str) -> tuple[Value, ...]:
        found = [self.union()]
        while self.taken(separator):
            found.append(self.union())
        return tuple(found)

    def union(self) -> Value:
        parts = [self.sum()]
        while self.taken("\\cup"):
            parts.append(self.sum())
        if len(parts) > 1 and not all(isinstance(part, Group) for part in parts):
            raise Unread
        return parts[0] if len(parts) == 1 else Group("\\cup", tuple(parts))

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unread
        sign = self.take() if self.next in ("+", "-") else ""
        total = _computed(sign, constant(0), self.product()) if sign else self.product()
        while self.next in ("+", "-"):
            total = _computed(self.take(), total, self.product())
        self.depth -= 1
        return total

    def product(self) -> Value:
        result, divided = self.power(), False
        while self.next in _TIMES or self.next in _STARTS or _VARIABLE.fullmatch(self.next):
            sign = _TIMES[self.take()] if self.next in _TIMES else ""
            if divided and not sign:  # 1/2x
                raise Unread
            divided = divided or sign == "/"
            result = _computed(sign or "*", result, self.power())
        return result

    def power(self) -> Value:
        start = self.position
        base = self.factor()
        while self.taken("!"):
            base = _applied("!", base)
        if self.taken("^"):
            return _computed("^", base, self.argument())
        called = self.next == "(" and self.tokens[self.position + 2 : self.position + 3] == [")"]
        if called and _VARIABLE.fullmatch(self.tokens[start]):  # f(2)
            raise Unread
        return base

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
        if token in _NAMED:
            return self.function()
        if token in _FLOORS:
            return self.rounded()
        if token in _BINOMIALS:
            self.take()
            return _applied("\\binom", self.argument(), self.argument())
        return self.matrix() if token.startswith("\\begin") else self.argument()

    def number(self) -> Value:
        digits = self.take()
        if len(digits) > 15 or self.next == "_":  # 1011_2
            raise Unread
        number, start = constant(float(digits), rough="." in digits), self.position
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
            return _computed("/", constant(int(digits[0])), constant(int(digits[1])))
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
            raise Unread  # the real root or the principal one
        return _computed("^", radicand, constant(1 / index))

    def rounded(self) -> Value:
        opens = self.take()
        value = self.sum()
        self.take(_FLOORS[opens])
        return _applied(opens, value)

    def function(self) -> Value:
        r"""`\log_2 8`, `\sin^2 x`, `\cos(2x)`, `\ln 2`; what follows a bare argument must not make it doubtful."""
        name, exponent = self.take(), None
        if self.taken("^"):
            exponent = self.take()
            if not (exponent.isdigit() and len(exponent) == 1):  # \sin^{-1}
                raise Unread
        base = [self.argument()] if name == "\\log" and self.take("_") else []
        value = _applied(name, self.function_argument(), *base)
        return value if exponent is None else _computed("^", value, constant(int(exponent)))

    def function_argument(self) -> Value:
        if self.next in ("(", "[", "{"):
            value = self.argument() if self.next == "{" else self.bracketed()
            if self.next == "^":
                raise Unread
            return value
        value = self.power()
        while self.next in _BARE or _VARIABLE.fullmatch(self.next):
            value = _computed("*", value, self.power())
        if self.next in _TIMES or self.next == "(":
            raise Unread
        return value

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
            return constant(int(token))
        if token in _CONSTANTS and self.next != "_":
            return constant(_CONSTANTS[token])
        if not _VARIABLE.fullmatch(token):
            raise Unread
        return variable(token + self.subscript() if self.taken("_") else token)

    def subscript(self) -> str:
        start = self.position
        if self.taken("{"):
            while self.take() != "}":
                pass
        elif len(self.take()) > 1:
            raise Unread
        return "_" + "".join(self.tokens[start : self.position]).strip("{}")


def _computed(sign: str, a: Value, b: Value) -> Scalar:
    return computed(sign, *_scalars(a, b))


def _applied(name: str, *arguments: Value) -> Scalar:
    return applied(name, *_scalars(*arguments))


def _scalars(*values: Value) -> list[Scalar]:
    scalars = [value for value in values if isinstance(value, Scalar)]
    if len(scalars) < len(values):
        raise Unread
    return scalars
