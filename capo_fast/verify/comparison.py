"""Whether two answers are equal: by their text, as choices and numbers, by guards, part by part, by words, by Math-Verify."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from capo_fast.verify.guards import guarded
from capo_fast.verify.limits import explodes
from capo_fast.verify.parts import THOUSANDS, Parts, members, parts
from capo_fast.verify.plain_numbers import number, same_number
from capo_fast.verify.spelling import spelled
from capo_fast.verify.words import opposite, same_phrase, without_unit, words

Verdict = tuple[bool, str]
"""Equal or not, and the name of the rule that decided."""

_LETTER = re.compile(r"\(?([A-J])\)?")
_CHOICE = re.compile(
    r"(?:(?:the )?(?:correct |right )?(?:option|choice|answer|letter)(?: is)?:? ?)?[(\[]?([A-J])(?:[)\]]\s?[.:]?\s?.*|\s?[.:]\s.*)?",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+|\\(?:angle|triangle|vec|overline|mathrm|mathbb)\s*\{?\s*[A-Za-z]+\}?)(?:_\{?[\w+,]+\}?)?'*(?:\([^()]*\))?"
    r"|\|[A-Z]{2}\||\([a-z](?:_\{?\d\}?)?(?:,\s*[a-z](?:_\{?\d\}?)?)*\)|\\frac\{[A-Z]{2}\}\{[A-Z]{2}\}|[^\d=]{1,20}:[^\d=]{1,20}"
    r"|[A-Z]_\{\w+\}\s*:\s*[A-Z](?:_\{\w+\})?|\w+_\{?\d\}?\s*:\s*\w+_\{?\d\}?"
)
_APPROXIMATELY = re.compile(r"\\(?:approx|sim|simeq)(?![a-z])")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-z])")
_PM = re.compile(r"\\pm(?![a-z])")
_MAX_DEPTH = 6


class Conventions(NamedTuple):
    """What fields decide differently."""

    tolerance: float = 0.0
    """Relative; holds where a number is a decimal. 0 is equality to 6 decimals, as in Math-Verify."""
    percent: bool = True
    """Whether 28 % is also equal to 28, not only to 0.28."""


def compare(answer: str, reference: str, conventions: Conventions) -> Verdict:
    """Whether two answers are equal, and the rule that decided."""
    if (choice := _same_choice(answer, reference)) is not None:
        return choice, "choice"
    a, b = spelled(answer), spelled(reference)
    found = _Comparison(conventions, thousands=True).verdict(a, b)
    if not found[0] and (THOUSANDS.search(a) or THOUSANDS.search(b)):  # 1,234 may be a list
        again = _Comparison(conventions, thousands=False).verdict(a, b)
        return again if again[0] else found
    return found


def _same_choice(answer: str, reference: str) -> bool | None:
    letter = _LETTER.fullmatch(spelled(reference))
    chosen = _CHOICE.fullmatch(spelled(answer)) if letter else None
    if letter is None or chosen is None:
        return None
    return chosen[1].upper() == letter[1] if len(chosen[0]) > 1 else chosen[1] == letter[1]


class _Comparison(NamedTuple):
    conventions: Conventions
    thousands: bool
    depth: int = 0

    def same(self, a: str, b: str) -> bool:
        return self.depth < _MAX_DEPTH and self._replace(depth=self.depth + 1).verdict(a, b)[0]

    def verdict(self, a: str, b: str) -> Verdict:
        if _key(a) == _key(b):
            return _key(a) != "", "same text"
        x, y = number(a), number(b)
        if x and y:
            return same_number(x, y, *self.conventions), "numbers"
        if _APPROXIMATELY.search(a + b):
            return self._approximately(a, b)
        return self._equations(a, b) or guarded(a, b, self.same) or self._parts(a, b) or self._leaf(a, b)

    def _approximately(self, a: str, b: str) -> Verdict:
        """x = 1/3 \\approx 0.33 is 1/3, and 0.33 where the other one is a decimal."""
        firsts, lasts = ([_APPROXIMATELY.split(each)[i].strip() for each in (a, b)] for i in (0, -1))
        exact = self.verdict(*(first or last for first, last in zip(firsts, lasts, strict=True)))
        if exact[0] or not all(firsts):
            return exact
        return self.verdict(*lasts)

    def _equations(self, a: str, b: str) -> Verdict | None:
        """An equation's last member, where its first one is a name or a computation."""
        ours, theirs = ([each] if self._listed(each) else members(each) for each in (a, b))
        if len(ours) == len(theirs) == 1:
            return None
        if len(ours) > 1 and len(theirs) > 1:
            return self._two_equations(ours, theirs)
        if (len(theirs) > 1 and not _assigns(theirs)) or (len(ours) > 1 and number(ours[-1]) and _asks(ours)):
            return False, "equation"
        return self.verdict(ours[-1], theirs[-1])

    def _two_equations(self, ours: list[str], theirs: list[str]) -> Verdict | None:
        if _key(ours[0]) == _key(theirs[0]):
            return self.verdict(ours[-1], theirs[-1])
        if all(_NAME.fullmatch(each[0]) for each in (ours, theirs)) and not words(ours[0]) and not words(theirs[0]):
            same = _bare_name(ours[0]) == _bare_name(theirs[0]) and self.same(ours[-1], theirs[-1])
            return (same, "equation") if same or self.same(ours[-1], theirs[-1]) else None
        if (
            number(ours[-1])
            and number(theirs[-1])
            and all(not re.search(r"[a-z]", _no_commands(each[0])) for each in (ours, theirs))
        ):
            return self.verdict(ours[-1], theirs[-1])
        return None

    def _listed(self, text: str) -> bool:
        return parts(text, self.thousands).kind == "list"

    def _parts(self, a: str, b: str) -> Verdict | None:
        """Lists, sets, tuples and intervals, part by part; None where both are one."""
        ours, theirs = _signed(parts(a, self.thousands)), _signed(parts(b, self.thousands))
        kinds = {ours.kind, theirs.kind}
        if kinds == {"one"}:
            return None
        if "one" in kinds and (
            _RELATION.search(a + b) or "\\cup" in a + b or "\\setminus" in a + b or "\\mathbb" in a + b
        ):
            return None  # an interval may be written as an inequality
        if kinds <= {"one", "list", "set"}:
            return self._same_set(ours.items, theirs.items, "set" in kinds), "list"
        if "set" in kinds or len(ours.items) != len(theirs.items) or (len(kinds) == 2 and kinds != {"list", "()"}):
            return False, "tuple"
        return all(self.same(x, y) for x, y in zip(ours.items, theirs.items, strict=True)), "tuple"

    def _same_set(self, ours: tuple[str, ...], theirs: tuple[str, ...], is_set: bool) -> bool:
        """Whether each has its equal on the other side; in order, where one side names different unknowns.

        A list that gives an answer twice wants it twice: a double root. One that repeats itself is not wrong for it.
        """
        if len(ours) < len(theirs) and not is_set:
            return False
        if (
            len(ours) == len(theirs)
            and _names(ours) != _names(theirs)
            and max(len(_names(ours)), len(_names(theirs))) > 1
        ):
            return all(self.same(x, y) for x, y in zip(ours, theirs, strict=True))
        if max(len(ours), len(theirs)) > 50:
            return sorted(map(_key, ours)) == sorted(map(_key, theirs))
        table = [[self.same(x, y) for y in theirs] for x in ours]
        return all(map(any, table)) and (
            _each_its_own(table) if not is_set else all(map(any, zip(*table, strict=True)))
        )

    def _leaf(self, a: str, b: str) -> Verdict:
        """Two answers of one part: without their units; in words; else what Math-Verify says."""
        (x, unit), (y, other) = without_unit(a), without_unit(b)
        if opposite(words(a), words(b)):
            return False, "opposite words"
        if (unit or other) and (x, y) != (a, b):
            return self.verdict(x, y)
        ours, theirs = words(a), words(b)
        if ours and theirs and same_phrase(a, b):
            return True, "words"
        if (ours or theirs) and not (len(ours) == len(theirs) == 1 and sorted(ours[0]) == sorted(theirs[0])):
            return False, "words"  # letters in another order may be a product
        if _NOT_BOTH.match(a) and number(b) or _NOT_BOTH.match(b) and number(a):
            return False, "no number"
        if explodes(a) or explodes(b):
            return False, "too large"
        from capo_fast.verify.values import same_value  # SymPy takes a second to import, most pairs need none of it

        return same_value(a, b, self.conventions.tolerance)


def _each_its_own(table: list[list[bool]]) -> bool:
    """Whether every column can have a line of its own in which it is true."""
    free = set(range(len(table)))
    for column in zip(*table, strict=True):
        line = next((i for i in sorted(free) if column[i]), None)
        if line is None:
            return False
        free.remove(line)
    return True


_NOT_BOTH = re.compile(r"[A-DF-Za-df-z]\Z")


@lru_cache(maxsize=8192)
def _key(text: str) -> str:
    """The text without white space and outer parentheses, in lower case if it is in words."""
    key = re.sub(r"\s+", "", text).rstrip(".")
    return key.lower() if words(text) else key


def _assigns(equation: list[str]) -> bool:
    return _NAME.fullmatch(equation[0].strip()) is not None or not re.search(r"[A-Za-z]", _no_commands(equation[0]))


def _asks(equation: list[str]) -> bool:
    """Whether an equation is one to be solved: something with an unknown that is zero."""
    return len(equation) == 2 and equation[-1].strip() == "0" and not _assigns(equation)


def _no_commands(text: str) -> str:
    return re.sub(r"\\[A-Za-z]+", "", text)


def _names(items: tuple[str, ...]) -> set[str]:
    """The unknowns that items name, without their indices: x_1 = 1, x_2 = 2 name one."""
    return {_bare_name(first) for first, *rest in map(members, items) if rest}


def _bare_name(name: str) -> str:
    return re.sub(r"_\{?\w+\}?|\s", "", name)


def _signed(outer: Parts) -> Parts:
    r"""With \pm read as the two answers that it is."""
    if outer.kind not in ("one", "list", "set") or not any(_PM.search(item) for item in outer.items):
        return outer
    items = [
        version
        for item in outer.items
        for version in ((_with_sign(item, "+"), _with_sign(item, "-")) if _PM.search(item) else (item,))
    ]
    return Parts("list" if outer.kind == "one" else outer.kind, tuple(items))


def _with_sign(item: str, sign: str) -> str:
    opposite_sign = {"+": "-", "-": "+"}[sign]
    text = re.sub(r"\\mp(?![a-z])", opposite_sign, _PM.sub(lambda _: sign, item))
    return re.sub(r"(?:(?<=\A)|(?<==))\s*\+\s*", "", text)
