"""Whether two simple answers are the same, settled by their values: cheap, and only where it is sure.

In a training step most answers that Math-Verify would be asked about are plainly right or plainly wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from capo_fast.credit.latex_value import Group, Value, value_of
from capo_fast.credit.scalar import Scalar, is_constant

_MAX_CHARS = 300
_MAX_EQUAL_SCALE, _MAX_EXACT_SCALE = 1e6, 1e12
_INTERVALS = {"()", "[]", "(]", "[)"}
_EQUALS = re.compile(r"=|\\in(?![A-Za-z])")
_ASSIGNED = re.compile(r"(?:[A-Za-z]|\\[a-z]+)\s*(?:\((?:[A-Za-z]|\d+)\))?", re.ASCII)
_AND = re.compile(r"(?:,\s*)?(?:\\text\s*{\s*(?:and|or)\s*}|\b(?:and|or)\b)")
_THOUSANDS = re.compile(r"(?<=\d)\s*(?:\{,\}|,\s*\\!)\s*(?=\d{3})")
_UNIT = re.compile(
    r"(?<=[\d})\s])(?:\\(?:text|mathrm|mbox)\s*{[^{}]*}(?:\s*\^\s*{?\d}?)?|(?<!\\)\b[A-Za-z][A-Za-z. ]*)$", re.ASCII
)
_WORD = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*{\s*(?:\(?[A-Z]\)?|[A-Za-z]{3,}(?: [A-Za-z]+)*)\s*}", re.ASCII)
_AMBIGUOUS: tuple[tuple[re.Pattern[str], *tuple[Callable[[re.Match[str]], str], ...]], ...] = (
    (
        re.compile(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)"),
        lambda m: m[0].replace(",", ""),
        lambda m: m[0].replace(",", ", "),
    ),
    (re.compile(r"(?<=[\d}])\s*\\?%"), lambda m: "/100", lambda m: ""),
    (re.compile(r"\\log(?![A-Za-z]|\s*_)"), lambda m: r"\ln ", lambda m: r"\log_{10}"),
    (
        re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)[^\d,=]{0,12})(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?"),
        lambda m: m[1] + m[2],
        lambda m: rf"{m[1]}{{\pi\frac{{{m[2]}}}{{180}}}}",
    ),
    (re.compile(r"\b(\d{1,9})\s*_\s*\{?\s*(\d{1,2})\s*\}?"), lambda m: m[1], lambda m: str(int(m[1], int(m[2])))),
)
"""What can be read in two ways: thousands or a list, percent or its number, the base of a log, degrees, base n."""


@dataclass(frozen=True)
class _Reading:
    """What stood before the last `=`, the value of the rest if it has one meaning, and all that it may mean."""

    name: str
    whole: Value | None
    meanings: tuple[Value, ...]


def compare(predicted: str, expected: str) -> bool | None:
    """Whether two answers are surely equal or surely different, else None.

    >>> compare("\\\\frac{\\\\sqrt{8}}{2}", "\\\\sqrt2"), compare("\\\\sin x", "(1, 2]"), compare("x > 1", "1")
    (True, False, None)
    """
    a, b = _read(predicted), _read(expected)
    if a is None or b is None or (a.name and b.name and a.name != b.name):
        return None
    names_agree = a.name or not b.name or _ASSIGNED.fullmatch(b.name)
    if names_agree and a.whole and b.whole and _same(a.whole, b.whole):
        return True
    return False if all(_same(x, y) is False for x in a.meanings for y in b.meanings) else None


def _same(a: Value, b: Value) -> bool | None:
    if isinstance(a, Scalar) and isinstance(b, Scalar):
        return _same_scalar(a, b)
    (kind, items), (other, others) = [(x.kind, x.items) if isinstance(x, Group) else ("list", (x,)) for x in (a, b)]
    if "word" in (kind, other):
        return False if _is_constant(b if kind == "word" else a) else None
    if "\\cup" in (kind, other):
        return _same_union(a, b)
    as_sets = _same_set(items, others)
    if kind != other:
        intervals = {kind, other} <= _INTERVALS and len(items) == len(others) == 2
        return False if intervals or as_sets is False else None
    if kind == "list":
        return as_sets
    if len(items) != len(others):
        return False
    return _all([_same(x, y) for x, y in zip(items, others, strict=True)])


def _same_union(a: Value, b: Value) -> bool | None:
    """Equal if part by part; other parts may still make up the same set, but no number or matrix does."""
    parts = [x.items if isinstance(x, Group) and x.kind == "\\cup" else (x,) for x in (a, b)]
    if not all(isinstance(part, Group) and part.kind in _INTERVALS | {"list"} for part in (*parts[0], *parts[1])):
        return False
    return True if _same_set(*parts) else None


def _is_constant(value: Value) -> bool:
    if isinstance(value, Scalar):
        return is_constant(value)
    return value.kind != "word" and all(map(_is_constant, value.items))


def _same_set(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool | None:
    """Whether each has its equal on the other side."""
    table = [[_same(x, y) for y in b] for x in a]
    return _all([_any(line) for line in (*table, *zip(*table, strict=True))])


def _all(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _any(answers: Sequence[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def _same_scalar(a: Scalar, b: Scalar) -> bool | None:
    """Different beyond any rounding error (for decimals: beyond rounding by hand), equal within it."""
    rough, (*scales, largest) = a.rough or b.rough, map(max, a.scales, b.scales)
    *gaps, at_natural = (abs(x - y) for x, y in zip(a.values, b.values, strict=True))
    tolerance = 1e-4 if rough else 1e-6
    if at_natural > 1e-9 * largest and all(gap > tolerance * s for gap, s in zip(gaps, scales, strict=True)):
        return False
    far = max(scales) > (_MAX_EQUAL_SCALE if max(gaps) else _MAX_EXACT_SCALE)
    if rough or far or at_natural > 1e-9 * largest:
        return None
    close = [gap <= min(1e-10 * abs(y), 1e-12 * s) for gap, y, s in zip(gaps, b.values[:-1], scales, strict=True)]
    return True if all(close) else None


@lru_cache(maxsize=4096)
def _read(answer: str) -> _Reading | None:
    """What an answer may mean, None if that isn't known. Remembered, as one reference meets many rollouts."""
    if len(answer) > _MAX_CHARS:
        return None
    if _WORD.fullmatch(answer.strip()):
        return _Reading("", None, (Group("word", ()),))
    answer = _AND.sub(",", _THOUSANDS.sub("", answer.strip().removesuffix(".")))
    *names, content = _EQUALS.split(answer)
    if not all(_ASSIGNED.fullmatch(name.strip()) or _is_name(value_of(name)) for name in names):
        return None
    bare = _UNIT.sub("", content)
    with_unit, without = _meanings(content), _meanings(bare) if bare != content else ()
    if not with_unit and not without:
        return None
    return _Reading("=".join(names).strip(), with_unit[0] if len(with_unit) == 1 else None, with_unit + without)


def _is_name(value: Value | None) -> bool:
    """`x`, `\\sin x`, `(a, b)`"""
    return isinstance(value, Scalar) or (value is not None and value.kind == "()")


def _meanings(text: str) -> tuple[Value, ...]:
    """The values under every reading; none if one of them isn't understood."""
    texts = [text]
    try:
        for pattern, *readings in _AMBIGUOUS:
            if pattern.search(text):
                texts = [pattern.sub(reading, each) for each in texts for reading in readings]
    except ValueError:  # 9_8 is no number
        return ()
    values = [value_of(each) for each in texts]
    return tuple(value for value in values if value) if all(values) else ()
