"""Multiple choice: the order in which choices are shown, the question as shown, and the choice an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from string import ascii_uppercase

from capo_fast.verify.extract import extract_answer

MOST = len(ascii_uppercase)
INSTRUCTION = "Put the letter of the right choice within \\boxed{}."

_WRAPPING = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox)\s*\{|[{}$*`\"'\u201c\u201d]|\\[()\[\], ]")
_PHRASE = re.compile(r"\b(?:answer|choice|option|letter)\s*(?:is|would be|must be|:)\s*:?", re.IGNORECASE)
_LETTER = re.compile(r"(?:(?:option|choice|letter|answer)\s+)?(?P<open>[(\[]?)(?P<letter>[A-Z])(?P<rest>.*)", re.DOTALL)
_ANOTHER = re.compile(r"[)\]]?\s*(?:,|/|&|\bor\b|\band\b)\s*(?:and|or)?\s*[(\[]?[A-Z](?![\w'])")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def shuffled(count: int, seed: int) -> tuple[int, ...]:
    """The choice shown at each place, a permutation made of the seed alone."""
    order = list(range(count))
    Random(seed).shuffle(order)
    return tuple(order)


def shown_question(question: str, choices: Sequence[str]) -> str:
    r"""The user's message. [us] The paper states neither layout nor wording.

    >>> print(shown_question("1+1?", ["3", "2"]))
    1+1?
    <BLANKLINE>
    A. 3
    B. 2
    <BLANKLINE>
    Put the letter of the right choice within \boxed{}.
    """
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return f"{question}\n\n{lines}\n\n{INSTRUCTION}"


def read_choice(text: str, choices: Sequence[str]) -> int | None:
    r"""The place (from 0) of the choice that an answer names among those shown; None where it can't be read.

    Looked at in turn: the last `\boxed{}`, what follows the last "answer is" or "answer:", the last line. Each may be
    a letter, a letter with its text, or the text of one choice. Two letters, or one beyond the choices, are none.

    >>> [read_choice(text, ["3", "2"]) for text in (r"so \boxed{\text{B}}.", "The answer is (A) 3", "2", "A or B")]
    [1, 0, 1, None]
    """
    clauses = [(extract_answer(text) or "") if "boxed" in text or "fbox" in text else "", *_clauses(text)]
    for clause in clauses:
        if (place := _named(_plain(clause), choices)) is not None:
            return place
    return _mentioned(_plain(clauses[-1]), choices)


def _clauses(text: str) -> list[str]:
    """What follows the last "answer is" on its line, and the last line."""
    phrases = list(_PHRASE.finditer(text))
    stated = text[phrases[-1].end() :].lstrip(" \t*").partition("\n")[0] if phrases else ""
    return [stated, text.strip().rpartition("\n")[2]]


def _plain(clause: str) -> str:
    """The clause without fonts, emphasis, quotes and dollars."""
    return _WRAPPING.sub("", clause.strip()).strip()


def _named(clause: str, choices: Sequence[str]) -> int | None:
    """The choice that a clause is: a letter, a letter and more, or a choice's own text."""
    letter = clause.strip("()[].,:;! ")
    if len(letter) == 1 and letter.isascii() and letter.isalpha():
        return _place(letter.upper(), choices)
    said = _norm(clause)
    same = [place for place, choice in enumerate(choices) if _norm(choice) == said != ""]
    if len(same) == 1:
        return same[0]
    match = _LETTER.match(clause)
    if match is None or _ANOTHER.match(match["rest"]):
        return None
    # A bare letter before a word may be an article or a pronoun.
    separated = r"[)\].:,;]|\s*$" if match["letter"] in "AI" and not match["open"] else r"[)\].:,;\s]|$"
    return _place(match["letter"], choices) if re.match(separated, match["rest"]) else None


def _mentioned(line: str, choices: Sequence[str]) -> int | None:
    """The one choice that a line mentions, by its letter in brackets or by its text."""
    letters = set(_IN_BRACKETS.findall(line))
    if letters:
        return _place(letters.pop(), choices) if len(letters) == 1 else None
    seen = f" {_norm(line)} "
    found = [place for place, choice in enumerate(choices) if f" {_norm(choice)} " in seen]
    widest = [place for place in found if not any(_inside(choices[place], choices[other]) for other in found)]
    return widest[0] if len(widest) == 1 else None


def _inside(one: str, other: str) -> bool:
    return _norm(one) != _norm(other) and f" {_norm(one)} " in f" {_norm(other)} "


def _place(letter: str, choices: Sequence[str]) -> int | None:
    place = ascii_uppercase.index(letter)
    return place if place < len(choices) else None


def _norm(text: str) -> str:
    """Words and signs, in lower case, one space between them, without the stop at the end."""
    return " ".join(re.findall(r"\w+|[^\w\s]", _plain(text).casefold().rstrip(". ")))
