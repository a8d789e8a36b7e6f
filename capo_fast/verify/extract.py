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
    r"(?<![\w.])(?:-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]{1,3}(?!\w))?(?:\s?\\?%)?"
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

    [us] An empty or unclosed box is none. A text that is an answer and nothing else (no prose) is taken whole. Where
    the last number stands inside `$...$` or another formula, the formula is the answer. None where there is nothing.

    >>> [extract_answer(text) for text in ("so \\\\boxed{3}, no: \\\\boxed{4}.", "7 and 8 apples", "x+1")]
    ['4', '8', 'x+1']
    """
    if boxes := _boxes(text):
        return boxes[-1].content
    marked = text.rpartition("####")
    if marked[1] and (line := marked[2].strip().partition("\n")[0].strip()):
        return line
    for phrase in reversed(list(_ANSWER_IS.finditer(text))):
        end = _SENTENCE_END.search(text, phrase.end())
        if clause := text[phrase.end() : end.start() if end else len(text)].strip():
            return _stated(clause)
    return _bare(text) or _last_formula_or_number(text) or _word(text)


def extract_joined_boxes(text: str) -> str | None:
    """The answer in several boxes: the last ones that only commas, "and" or "or" part. None if the last stands alone.

    >>> extract_joined_boxes("\\\\boxed{0}? No: $\\\\boxed{1}$ and $\\\\boxed{2}$")
    '1, 2'
    """
    boxes = _boxes(text)
    run = boxes[-1:]
    for box in reversed(boxes[:-1]):
        if box.end > run[-1].start or not _joined(text[box.end : run[-1].start]):
            break
        run.append(box)
    return ", ".join(box.content for box in reversed(run)) if len(run) > 1 else None


def _boxes(text: str) -> list[_Span]:
    """Every closed box that holds something, in the order of their starts."""
    stack: list[re.Match[str]] = []
    boxes = []
    for mark in _BRACES.finditer(text):
        if mark["box"] or mark[0] == "{":
            stack.append(mark)
        elif mark[0] == "}" and stack:
            opened = stack.pop()
            if opened["box"]:
                boxes.append(_Span(opened.start(), mark.end(), text[opened.end() : mark.start()].strip()))
    return sorted(box for box in boxes if box.content)


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
    """The whole text if it is one line without a word of prose, or one formula."""
    text = text.strip()
    if not text or len(text) > _MAX_BARE_CHARS:
        return None
    first = next(_formulas(text), None)
    if first and (first.start, first.end) == (0, len(text.rstrip("."))):
        return first.content
    prose = "\n" in text or _PROSE.search(_NOT_PROSE.sub(" ", text))
    return None if prose or not re.search(r"\w", text) else text


def _last_formula_or_number(text: str) -> str | None:
    *_, number = [None, *_NUMBER.finditer(text)]
    formula = None
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
