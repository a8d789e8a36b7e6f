"""Mathematics in prose: formulas, the start of a sentence, its last number. All in linear time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from capo_fast.verify.vocabulary import TEXT_COMMANDS

MAX_CHARS = 300
"""Longest text that may be an answer as a whole."""

_MATHS_MARK = re.compile(r"\\\\|\\\$|\n|\$\$?|\\[][()]")
_CLOSES = {"$": "$", "$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_FUNCTIONS = "(?:arc)?(?:sin|cos|tan)|sqrt|cot|sec|csc|log|ln|exp|pi|mod|gcd|lcm|infty|inf|infinity|minus|negative"
_UNIT = rf"\\{TEXT_COMMANDS}\s*\{{[^{{}}]*\}}(?:\^\{{?-?\d\}}?)?"
_COMMAND = re.compile(
    rf"{_UNIT}|\\(?:begin|end)\s*\{{[a-z*]+\}}|\\[A-Za-z]+|\b(?:{_FUNCTIONS})\b|\b(?:and|or)\b(?=\s*(?:[-\d$\\(]|[a-z]\s*=))"
)
_SHORT_WORDS = "of|in|is|as|so|if|to|by|on|at|we|it|be|or|an|am|pm|no|he|up|my|us|do"
_PROSE = re.compile(
    rf"(?<![A-Za-z\d\\])(?:[A-Za-z]{{3,}}|(?:{_SHORT_WORDS})(?![A-Za-z]))|[^\W\d_a-zA-Z]{{2,}}", re.IGNORECASE
)
_PLAIN_WORD = re.compile(
    rf"{_UNIT}|(?<![\\A-Za-z])(?!(?:{_FUNCTIONS})\b)[A-Za-z]{{2,}}(?:\^\{{?-?\d\}}?)?|\n|[.!?;:](?=\s|\Z)|(?<=[A-Za-z]):|\\?\$"
)
_NUMBER = re.compile(
    r"(?<![\w.^_])(?<![\^_]\{)(?:-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]{1,3}(?!\w))?(?:\s?\\?%)?"
)
_JOIN = re.compile(r"\s*(?:[,;]\s*)?(?:\b(?:and|or)\b\s*)?", re.IGNORECASE)
_MODULO = re.compile(r"(?<![\w.])-?\d{1,30}\s*\(?\s*\\?(?:[pb]?mod|modulo)\s*\{?\s*\Z")
_EDGES = " \t,;:.!?=*"
_DANGLING = re.compile(r"\s[-+*/^<>&]+\Z|[+*/^<>=&]\Z|\s+\b(?:and|or)\Z|\s+[A-Z]\Z|(?<=\d)\s+a\Z")
_TWO_IN_A_ROW = re.compile(r"[A-Za-z\d] +\d(?!\d*/\d)")


class Span(NamedTuple):
    start: int
    end: int
    content: str


def formulas(text: str) -> Iterator[Span]:
    """Contents of $...$ (on one line), $$...$$, \\(...\\) and \\[...\\]; two prices with words between are none."""
    opened = None
    for mark in _MATHS_MARK.finditer(text):
        if opened is None:
            opened = mark if mark[0] in _CLOSES else None
        elif mark[0] == _CLOSES[opened[0]]:
            content = text[opened.end() : mark.start()].strip()
            if mark[0] == "$" and content[:1].isdigit() and has_prose(content[:MAX_CHARS]):
                opened = mark
                continue
            yield Span(opened.start(), mark.end(), content)
            opened = None
        elif mark[0] == "\n" and opened[0] == "$":
            opened = None


def has_prose(text: str) -> bool:
    """True if a text has words that are not part of mathematics."""
    return _PROSE.search(_masked(text)) is not None


def bare(text: str) -> str | None:
    """The whole text if it is one line without a word of prose, or one formula."""
    text = text.strip()
    if not text or len(text) > MAX_CHARS:
        return None
    first = next(formulas(text), None)
    if first and (first.start, first.end) == (0, len(text.rstrip("."))):
        return first.content
    return None if "\n" in text or has_prose(text) or not re.search(r"\w", text) else text


def leading_formulas(text: str) -> str | None:
    """The formulas at the start of a text, while only commas, "and" or "or" separate them."""
    found: list[Span] = []
    for formula in formulas(text):
        gap = text[found[-1].end if found else 0 : formula.start]
        if (found and not (gap.strip() and _JOIN.fullmatch(gap))) or (gap and not found):
            break
        found.append(formula)
    return ", ".join(formula.content.strip(" ,") for formula in found) or None


def leading_maths(sentence: str) -> str | None:
    """A sentence's mathematics up to its first word of prose, or to a remark in parentheses; None without any.

    >>> [leading_maths(text) for text in ("3/4 of a pie", "12 (4 groups of 3)", "10 - 3 = 7 dollars", "no 5")]
    ['3/4', '12', '10 - 3 = 7', None]
    """
    word = _PROSE.search(_masked(sentence))
    maths = sentence[: word.start()] if word else sentence
    if maths.count("(") > maths.count(")") + maths.count("]"):
        maths = maths[: maths.rindex("(")]
    maths = _trimmed(maths)
    return maths if re.search(r"[^\W_]", maths) else None


def last_formula_or_number(text: str) -> str | None:
    """The formula with the last number and those joined to it by "and"; else its expression; else the number."""
    *_, number = [None, *_NUMBER.finditer(text)]
    run: list[Span] = []
    for formula in formulas(text):
        gap = text[run[-1].end : formula.start] if run else ""
        run = [*run, formula] if gap.strip() and _JOIN.fullmatch(gap) else [formula]
        if number and formula.end > number.start():
            break
    if run and (number is None or run[-1].start <= number.start() < run[-1].end):
        return ", ".join(formula.content.strip(" ,") for formula in run)
    if number is None:
        return None
    if residue := _MODULO.search(text[max(0, number.start() - 60) : number.start()]):
        return f"{residue[0]}{number[0]}" + ")" * residue[0].count("(") + "}" * residue[0].count("{")
    return _last_expression(text[max(0, number.end() - MAX_CHARS) : number.end() + 20]) or number[0]


def _last_expression(text: str) -> str | None:
    """The last expression with a digit, after its equals signs; None if plain words make its start uncertain."""
    piece = next((piece for piece in reversed(_PLAIN_WORD.split(text)) if re.search(r"\d", piece)), "")
    expression = _trimmed(piece.rpartition("=")[2])
    if not re.search(r"[(\[{]", expression):
        expression = _trimmed(re.split(r",\s", expression)[-1])
    sure = re.search(r"\d", expression) and not _TWO_IN_A_ROW.search(expression)
    opened, closed = (sum(map(expression.count, signs)) for signs in ("([{", ")]}"))  # [1, 2) is closed
    return expression if sure and opened == closed else None


def _masked(text: str) -> str:
    """The text with blanks for LaTeX's commands and the names of functions, each as long as it was."""
    return _COMMAND.sub(lambda match: " " * len(match[0]), text)


def _trimmed(maths: str) -> str:
    maths = maths.strip(_EDGES)
    while dangling := _DANGLING.search(maths):
        maths = maths[: dangling.start()].strip(_EDGES)
    return maths
