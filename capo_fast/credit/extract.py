"""The final answer of a solution. Every function here takes linear time: the text is a policy's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_BRACES = re.compile(r"\\(?P<box>boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_DECORATION = re.compile(r"\\(?:text|mathrm)\s*\{|\\q?quad(?![a-z])|\\[][()!,;: ]|[}$\s]+")
_JOINS_BOXES = re.compile(r"(?:[a-z]+ )?(?:[,;]|,? ?and|,? ?or)(?: [\w]{1,8} ?=)? ?", re.IGNORECASE)
_ANSWER_IS = re.compile(r"answer\s+is\b\s*:?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|\Z)")
_NUMBER = re.compile(
    r"(?<![\w.])(?:-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+)(?:\s?\\?%)?"
)
_MATHS_MARK = re.compile(r"\\\\|\\\$|\n|\$\$?|\\[][()]")
_CLOSES = {"$": "$", "$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_NOT_PROSE = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*\{[^{}]*\}|\\(?:begin|end)\s*\{[a-z*]+\}|\\[A-Za-z]+"
    r"|\b(?:and|or|sqrt|sin|cos|tan|cot|log|ln|exp|pi|mod|infty)\b"
)
_PROSE = re.compile(r"[^\W\d_]{2}")
_MAX_BARE_CHARS = 300


class _Span(NamedTuple):
    start: int
    end: int
    content: str


def extract_answer(text: str) -> str | None:
    """The final answer: the last `\\boxed{}`, else what follows `####`, else "answer is", else the last number.

    [us] Boxes joined by commas, "and" or "or" are one answer of several parts; an empty or unclosed box is none. A text
    that is an answer and nothing else (no prose) is taken whole. Where the last number stands inside `$...$` or another
    formula, the formula is the answer. None where there is nothing to take.

    >>> extract_answer("so \\\\boxed{3}, no: \\\\boxed{\\\\frac{1}{2}}."), extract_answer("7 and 8 apples"), extract_answer("x+1")
    ('\\\\frac{1}{2}', '8', 'x+1')
    """
    if boxed := _boxed(text):
        return boxed
    marked = text.rpartition("####")
    if marked[1] and (line := marked[2].strip().partition("\n")[0].strip()):
        return line
    for phrase in reversed(list(_ANSWER_IS.finditer(text))):
        end = _SENTENCE_END.search(text, phrase.end())
        if clause := text[phrase.end() : end.start() if end else len(text)].strip():
            return _stated(clause)
    return _bare(text) or _last_formula_or_number(text) or _word(text)


def _boxed(text: str) -> str:
    """The content of the last box, or of the run of boxes it ends."""
    boxes = [box for box in _boxes(text) if box.content]
    if not boxes:
        return ""
    run = [boxes.pop()]
    while boxes and boxes[-1].end <= run[0].start and _joined(text[boxes[-1].end : run[0].start]):
        run.insert(0, boxes.pop())
    return ", ".join(box.content for box in run)


def _boxes(text: str) -> list[_Span]:
    """Every closed box, in the order of their starts."""
    stack: list[re.Match[str]] = []
    boxes = []
    for mark in _BRACES.finditer(text):
        if mark["box"] or mark[0] == "{":
            stack.append(mark)
        elif mark[0] == "}" and stack:
            opened = stack.pop()
            if opened["box"]:
                boxes.append(_Span(opened.start(), mark.end(), text[opened.end() : mark.start()].strip()))
    return sorted(boxes)


def _joined(between: str) -> bool:
    return len(between) < 80 and _JOINS_BOXES.fullmatch(" ".join(_DECORATION.sub(" ", between).split())) is not None


def _stated(clause: str) -> str:
    """The answer in "... answer is <clause>": its first formula or number, unless it is all answer."""
    if bare := _bare(clause):
        return bare
    formula, number = next(_formulas(clause), None), _NUMBER.search(clause)
    if formula and (number is None or formula.start < number.start()):
        return formula.content
    return number[0] if number else clause


def _bare(text: str) -> str | None:
    """The whole text if it holds no word of prose, or is one formula."""
    text = text.strip()
    if not text or len(text) > _MAX_BARE_CHARS:
        return None
    first = next(_formulas(text), None)
    if first and (first.start, first.end) == (0, len(text.rstrip("."))):
        return first.content
    return None if _PROSE.search(_NOT_PROSE.sub(" ", text)) or not re.search(r"\w", text) else text


def _last_formula_or_number(text: str) -> str | None:
    number = formula = None
    for number in _NUMBER.finditer(text):
        pass
    for formula in _formulas(text):
        if number and formula.end > number.start():
            break
    if formula and (number is None or formula.start <= number.start() < formula.end):
        return formula.content
    return number[0] if number else None


def _word(text: str) -> str | None:
    """A short answer in words, such as a name."""
    words = text.split()
    return " ".join(words) if 0 < len(words) <= 3 else None


def _formulas(text: str) -> Iterator[_Span]:
    """What stands in $...$ (on one line), $$...$$, \\(...\\) or \\[...\\]."""
    opened = None
    for mark in _MATHS_MARK.finditer(text):
        if opened is None:
            opened = mark if mark[0] in _CLOSES else None
        elif mark[0] == _CLOSES[opened[0]]:
            yield _Span(opened.start(), mark.end(), text[opened.end() : mark.start()].strip())
            opened = None
        elif mark[0] == "\n" and opened[0] == "$":
            opened = None
