"""Compares two answers by rules in turn: choices, text, numbers, guards, parts, words, Math-Verify."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from capo_fast.verify.guards import GUARDS, guarded
from capo_fast.verify.limits import explodes
from capo_fast.verify.parts import (
    APPROXIMATELY,
    RELATION,
    THOUSANDS,
    Parts,
    has_letters,
    is_name,
    members,
    names,
    parts,
    plain_name,
    renamed,
    signed,
)
from capo_fast.verify.plain_numbers import number, same_number
from capo_fast.verify.spelling import spelled
from capo_fast.verify.symbols import SYMBOL_GUARDS
from capo_fast.verify.vocabulary import CHOICE_WORD
from capo_fast.verify.words import opposite, same_phrase, without_unit, words

Verdict = tuple[bool, str]
"""Equal or not, and the name of the rule that decided."""

_LETTER = re.compile(r"\(?([A-J])\)?")
_CHOICE = re.compile(
    rf"(?:(?:the )?(?:correct |right )?{CHOICE_WORD}(?: is)?:? ?)?"
    r"[(\[]?([A-J])(?:[)\]]\s?[.:]?\s?(?P<text>.*)|\s?[.:]\s(?P<more>.*))?",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"\(?([A-J])(?:\)|\.)\s(?P<text>.+)")
_ANOTHER_CHOICE = re.compile(r"\b[A-J]\s*[)\]]|\b(?:and|or)\s+[A-J]\b")
_INTERVAL = re.compile(r"[<>]|\\(?:le|ge|ne|cup|cap|setminus|mathbb)(?![a-z])")
_NO_NUMBER = re.compile(r"[A-DF-Za-df-z]")
_GUARDS = (*GUARDS, *SYMBOL_GUARDS)
_MAX_DEPTH, _MAX_ITEMS = 6, 50
MAX_CHARS = 1_000
"""A longer answer is compared only as text."""


class Conventions(NamedTuple):
    """Conventions that differ between fields."""

    tolerance: float = 0.0
    """Relative, for pairs with a decimal. 0 means equality to 6 decimals, as in Math-Verify."""
    percent: bool = True
    """28 % also equals 28, not only 0.28."""


def compare(answer: str, reference: str, conventions: Conventions) -> Verdict:
    """Compares two answers. Returns equality and the rule that decided."""
    if (choice := _same_choice(answer, reference)) is not None:
        return choice, "choice"
    a, b = _chosen_text(spelled(answer)), _chosen_text(spelled(reference))
    found = _Comparison(conventions, thousands=True).verdict(a, b)
    if not found[0] and (THOUSANDS.search(a) or THOUSANDS.search(b)):  # 1,234 may be a list
        again = _Comparison(conventions, thousands=False).verdict(a, b)
        return again if again[0] else found
    return found


def _same_choice(answer: str, reference: str) -> bool | None:
    """True if an answer chooses the letter of the reference; None if one has no letter, or both have texts."""
    wanted = spelled(reference)
    expected = _LETTER.fullmatch(wanted) or _labelled(wanted)
    chosen = _CHOICE.fullmatch(spelled(answer)) if expected else None
    if expected is None or chosen is None:
        return None
    text, letter = chosen["text"] or chosen["more"] or "", expected[1]
    if _ANOTHER_CHOICE.search(text):
        return False
    same = chosen[1].upper() == letter if len(chosen[0]) > 1 else chosen[1] == letter
    return None if same and text and expected.re is _LABELLED else same


def _labelled(text: str) -> re.Match[str] | None:
    """A letter with the text of its choice."""
    match = _LABELLED.fullmatch(text)
    return match if match and not _ANOTHER_CHOICE.search(match["text"]) else None


def _chosen_text(text: str) -> str:
    """The text of a choice without its letter."""
    match = _labelled(text)
    return match["text"] if match else text


class _Comparison(NamedTuple):
    conventions: Conventions
    thousands: bool
    depth: int = 0

    def same(self, a: str, b: str) -> bool:
        """True if two parts of answers are equal."""
        return self.depth < _MAX_DEPTH and self._replace(depth=self.depth + 1).verdict(a, b)[0]

    def verdict(self, a: str, b: str) -> Verdict:
        if _key(a) == _key(b):
            return _key(a) != "", "same text"
        x, y = number(a), number(b)
        if x and y:
            return same_number(x, y, *self.conventions), "numbers"
        if APPROXIMATELY.search(a) or APPROXIMATELY.search(b):
            return self._approximately(a, b)
        return self._equations(a, b) or guarded(_GUARDS, a, b, self.same) or self._parts(a, b) or self._one(a, b)

    def _approximately(self, a: str, b: str) -> Verdict:
        r"""For x = 1/3 \approx 0.33 compares the exact part first, then the approximate one."""
        pieces = [[piece for each in APPROXIMATELY.split(text) if (piece := each.strip())] or [""] for text in (a, b)]
        exact = self.verdict(pieces[0][0], pieces[1][0])
        return exact if exact[0] else self.verdict(pieces[0][-1], pieces[1][-1])

    def _equations(self, a: str, b: str) -> Verdict | None:
        """Compares an equation's last member with an answer that is no equation; None if neither is an equation."""
        ours, theirs = ([text] if self._is_list(text) else members(text) for text in (a, b))
        if len(ours) == len(theirs) == 1:
            return None
        if len(ours) > 1 and len(theirs) > 1:
            return self._two_equations(ours, theirs)
        unsolved = len(ours) == 2 and ours[-1] == "0" and has_letters(ours[0]) and not is_name(ours[0])
        if unsolved or (len(theirs) > 1 and has_letters(theirs[0]) and not is_name(theirs[0])):
            return False, "equation"
        return self.verdict(ours[-1], theirs[-1])

    def _two_equations(self, ours: list[str], theirs: list[str]) -> Verdict | None:
        """Compares the last members of two assignments to one name or two computations; None for equations to solve."""
        (a, body), b = renamed(ours, theirs), theirs[0]
        same = self.same(body, theirs[-1])
        if _key(a) == _key(b) or not (has_letters(a) or has_letters(b)):
            return same, "equation"
        if same and is_name(a) and is_name(b) and not words(a) and not words(b):
            return plain_name(a) == plain_name(b), "equation"
        return None

    def _is_list(self, text: str) -> bool:
        return parts(text, self.thousands).kind == "list"

    def _parts(self, a: str, b: str) -> Verdict | None:
        """Compares lists, sets, tuples and intervals by parts; None if both are single, or one may be inequalities."""
        ours, theirs = signed(parts(a, self.thousands)), signed(parts(b, self.thousands))
        kinds = {ours.kind, theirs.kind}
        if kinds == {"one"} or ("one" in kinds and (_INTERVAL.search(a) or _INTERVAL.search(b))):
            return None
        if kinds <= {"one", "list", "set"}:
            same = self._same_items(ours.items, theirs.items, "set" in kinds)
            return None if not same and _relations(ours) and _relations(theirs) else (same, _rule(kinds))
        if _relations(ours) or _relations(theirs):
            return None
        if "set" in kinds or len(ours.items) != len(theirs.items) or (len(kinds) == 2 and kinds != {"list", "()"}):
            return False, _rule(kinds)
        return all(map(self.same, ours.items, theirs.items)), _rule(kinds)

    def _same_items(self, ours: tuple[str, ...], theirs: tuple[str, ...], is_set: bool) -> bool:
        """True if every item equals one of the other side; in order if only one side names different unknowns.

        A reference that lists an answer twice needs it twice: a double root. Repetition in the answer is accepted.
        """
        if len(ours) < len(theirs) and not is_set:
            return False
        if max(len(ours), len(theirs)) > _MAX_ITEMS:
            return sorted(map(_key, ours)) == sorted(map(_key, theirs))
        first, second = names(ours), names(theirs)
        if len(ours) == len(theirs) and first != second and max(len(first), len(second)) > 1:
            return all(map(self.same, ours, theirs))
        table = [[self.same(x, y) for y in theirs] for x in ours]
        columns = list(zip(*table, strict=True))
        return all(map(any, table)) and (all(map(any, columns)) if is_set else _each_its_own(columns))

    def _one(self, a: str, b: str) -> Verdict:
        """Compares two single answers: without units, in words, else by their values or Math-Verify."""
        ours, theirs = words(a), words(b)
        if opposite(ours, theirs):
            return False, "opposite words"
        x, y = without_unit(a), without_unit(b)
        if (x, y) != (a, b):
            return self.verdict(x, y)
        if ours or theirs:
            same = bool(ours and theirs) and same_phrase(a, b)
            product = len(ours) == len(theirs) == 1 and len(ours[0]) > 3 and sorted(ours[0]) == sorted(theirs[0])
            if same or not product:
                return same, "words"
        if (_NO_NUMBER.fullmatch(a) and number(b)) or (number(a) and _NO_NUMBER.fullmatch(b)):
            return False, "no number"
        if explodes(a) or explodes(b):
            return False, "too large"
        from capo_fast.verify.values import same_value  # SymPy takes a second to import, and most pairs don't need it

        return same_value(a, b, self.conventions.tolerance)


def _relations(outer: Parts) -> bool:
    """True for a list of relations, which may together be one interval."""
    return outer.kind == "list" and all(map(RELATION.search, outer.items))


def _rule(kinds: set[str]) -> str:
    """The name of the rule for two kinds of answers."""
    if "set" in kinds:
        return "set"
    brackets = kinds - {"one", "list"}
    return "list" if not brackets else "tuple" if brackets == {"()"} else "interval"


def _each_its_own(columns: list[tuple[bool, ...]]) -> bool:
    """True if every column can be assigned a line of its own in which it is true."""
    taken: set[int] = set()
    for column in columns:
        line = next((i for i, same in enumerate(column) if same and i not in taken), None)
        if line is None:
            return False
        taken.add(line)
    return True


@lru_cache(maxsize=8192)
def _key(text: str) -> str:
    """The text without white space except between digits, in lower case if it has words."""
    key = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).rstrip(".")
    return key.lower() if words(text) else key
