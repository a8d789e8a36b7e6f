"""The outer form of an answer (one, a list, a set, a tuple, an interval), and the members of an equation."""

from __future__ import annotations

import re
from typing import NamedTuple

_SEPARATOR = re.compile(
    r"(?:[,;]\s*)?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])(?!\s+(?:more|less|fewer|greater|larger|smaller|higher|lower)\b)\s*"
    r"|[,;]\s*|\s\\quad\s"
)
_COMMA = re.compile(r"[,;]")
_EQUALS = re.compile(r"(?<![<>!:])={1,2}(?!=)")
_THEREFORE = re.compile(r"\\(?:Rightarrow|Longrightarrow|implies|therefore|iff|Leftrightarrow)(?![a-z])|=>")
APPROXIMATELY = re.compile(r"\\(?:approx|sim|simeq)(?![a-z])")
RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-z])")
"""An inequality's sign, in a spelled answer."""
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])")
_PLUS_MINUS = re.compile(r"\\pm(?![a-z])\s*")
_LETTERS = r"(?:\\?[A-Za-z]+|\\(?:angle|triangle|vec|overline|mathbb)\s*\{?\s*[A-Za-z]+\}?)"
_UNKNOWN = r"[a-z](?:_\{?\d\}?)?"
_NAME = re.compile(
    rf"{_LETTERS}(?:_\{{?[\w+,]+\}}?)?'*(?:\([^()]*\))?"  # x, x_1, f(x), \angle A, P(A)
    rf"|\|[A-Z]{{2}}\||\\frac\{{[A-Z]{{2}}\}}\{{[A-Z]{{2}}\}}"  # |AB|, AB over CD
    rf"|\({_UNKNOWN}(?:,\s*{_UNKNOWN})*\)"  # (x, y)
    r"|[^\d=]{1,20}:[^\d=]{1,20}|\w+_\{?\w+\}?\s*:\s*\w+(?:_\{?\w+\}?)?"  # a:b, S_1:S_2
)
_FUNCTION = re.compile(r"([A-Za-z])\s*\(\s*([a-z])\s*\)")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_BRACKETS = {"(": ")]", "[": ")]"}


class Parts(NamedTuple):
    """`kind`: one, list (of no order), set, or an opening and a closing bracket."""

    kind: str
    items: tuple[str, ...]


def parts(text: str, thousands: bool) -> Parts:
    r"""The outer form; with `thousands` the comma of 1,234 is no separator.

    >>> parts("(1, 2]", True), parts(r"\{3\}", True), parts("1 and (2, 3)", True)
    (Parts(kind='(]', items=('1', '2')), Parts(kind='set', items=('3',)), Parts(kind='list', items=('1', '(2, 3)')))
    >>> parts("1,234", True).kind, parts("1,234", False).kind
    ('one', 'list')
    """
    text = text.strip()
    if text.startswith("\\{") and closing(text, 1) == len(text) - 1:
        return Parts("set", tuple(split(text[2:-2], _SEPARATOR, thousands)))
    if text[:1] in _BRACKETS and closing(text, 0) == len(text) - 1 and text[-1] in _BRACKETS[text[0]]:
        items = split(text[1:-1], _COMMA, False)
        if len(items) > 1:
            return Parts(text[0] + text[-1] if len(items) == 2 else "()", tuple(items))
        if text[0] + text[-1] == "()":
            return parts(text[1:-1], thousands)
    items = split(text, _SEPARATOR, thousands)
    return Parts("list", tuple(items)) if len(items) > 1 else Parts("one", (text,))


def members(text: str) -> list[str]:
    """The members of an equation, after the last "therefore"; one member if there is no equation."""
    return split(split(text, _THEREFORE, True)[-1], _EQUALS, True)


def split(text: str, separator: re.Pattern[str], thousands: bool) -> list[str]:
    """Splits at the separators outside brackets."""
    kept = [match.span() for match in THOUSANDS.finditer(text)] if thousands else []
    depth, place, start, pieces = 0, 0, 0, []
    for match in separator.finditer(text):
        depth += sum(text.count(sign, place, match.start()) for sign in "([{")
        depth -= sum(text.count(sign, place, match.start()) for sign in ")]}")
        place = match.start()
        if depth == 0 and not any(a <= place < b for a, b in kept):
            pieces.append(text[start:place].strip())
            start = match.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece] or [text.strip()]


def closing(text: str, opened: int) -> int | None:
    """The index of the bracket that closes the one at `opened`, None if there is none."""
    depth = 0
    for place in range(opened, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0:
            return place
    return None


# ---- equations ----


def is_name(member: str) -> bool:
    r"""True if a member of an equation is a name: x_1, f(x), \angle A, (x, y), S_1:S_2."""
    return _NAME.fullmatch(member.strip()) is not None


def has_letters(member: str) -> bool:
    return re.search(r"[A-Za-z]", _COMMAND.sub("", member)) is not None


def plain_name(name: str) -> str:
    """A name in its canonical spelling: x_{1} is x_1."""
    return re.sub(r"[{}\s]", "", name)


def bare_name(name: str) -> str:
    """A name without its index."""
    return re.sub(r"_\{?\w+\}?|\s", "", name)


def renamed(equation: list[str], other: list[str]) -> tuple[str, str]:
    """An equation's name and last member, with the argument of the other's name: f(y) = 2y is f(x) = 2x."""
    name, body = equation[0], equation[-1]
    ours, theirs = _FUNCTION.fullmatch(name), _FUNCTION.fullmatch(other[0])
    if ours and theirs and ours[1] == theirs[1] and not re.search(_alone(theirs[2]), body):
        return other[0], re.sub(_alone(ours[2]), theirs[2], body)
    return name, body


def _alone(letter: str) -> str:
    return rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])"


def names(items: tuple[str, ...]) -> set[str]:
    """The unknowns of the items, without their indices: x_1 = 1, x_2 = 2 have one."""
    return {bare_name(first) for first, *rest in map(members, items) if rest}


# ---- plus or minus ----


def signed(outer: Parts) -> Parts:
    r"""Expands \pm to its two answers."""
    if outer.kind not in ("one", "list", "set") or not any(map(_PLUS_MINUS.search, outer.items)):
        return outer
    items = [each for item in outer.items for each in (with_signs(item) if _PLUS_MINUS.search(item) else (item,))]
    return Parts("list" if outer.kind == "one" else outer.kind, tuple(items))


def with_signs(item: str) -> tuple[str, str]:
    upper = re.sub(r"\\mp(?![a-z])", "-", _PLUS_MINUS.sub("+", item))
    lower = re.sub(r"\\mp(?![a-z])", "+", _PLUS_MINUS.sub("-", item))
    return re.sub(r"(?:(?<=\A)|(?<==))\s*\+\s*", "", upper), lower
