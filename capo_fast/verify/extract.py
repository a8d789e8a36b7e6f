"""Extracts the final answer of a solution, and the answer of a reference.

Light imports: the parent of the workers extracts answers too. Every function takes linear time, as a policy wrote the
text.
"""

from __future__ import annotations

import re

from capo_fast.verify.prose import (
    MAX_CHARS,
    Span,
    bare,
    last_formula_or_number,
    leading_formulas,
    leading_maths,
)
from capo_fast.verify.unicode_maths import latex_of
from capo_fast.verify.vocabulary import CHOICE_WORD

_THOUGHT = r"(?:think|thinking|thought|reasoning)>"
_THOUGHT_ENDS, _THOUGHT_STARTS = re.compile(rf"</{_THOUGHT}", re.IGNORECASE), re.compile(rf"<{_THOUGHT}", re.IGNORECASE)
_TAGS = re.compile(r"<answer>", re.IGNORECASE), re.compile(r"</answer>", re.IGNORECASE)
_BRACES = re.compile(r"\\\\?(?P<box>boxed|fbox|framebox)\s*(?:\{|(?P<bare>\d))|\\.|[{}]", re.DOTALL)
_DECORATION = re.compile(r"\\(?:text|mathrm)\s*\{|\\q?quad(?![a-z])|\\[][()!,;: ]|[}$\s]+")
_JOINS_BOXES = re.compile(
    r"(?:\(?[a-z]+\)? ){0,4}(?:[,;]|,? ?and|,? ?or)(?: [\w]{1,8} ?=)? ?|,? ?and [a-z ]+ (?:is|are)", re.IGNORECASE
)
_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|then|answer|finally|total|sum|product|which|this)\b", re.IGNORECASE
)
_MOST_BETWEEN = 100
_MARK = re.compile(r"(?<!#)####(?!#)")
_HEADING = re.compile(r"^(?:#{1,3}|#{5,6})\s+", re.MULTILINE)
_MIXED_UNITS = re.compile(
    r"(?:\d[\d.]*\s*(?:hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|feet|foot|ft|inch(?:es)?|in"
    r"|yards?|miles?|pounds?|lbs?|ounces?|oz|dollars?|cents?|kg|g|km|m|cm)\b\.?[\s,]*(?:and\s+)?){2,4}"
)
_NONE = re.compile(
    r"\b(?:there\s+(?:are|is|exists?)|has|have)\s+(no\s+(?:[a-z]+\s+){0,2}(?:solution|root|answer|integer|value)s?)\.?\s*\Z",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:as|since|because|for|if|when|where|unless|while|that)\b", re.IGNORECASE)
_SWEEPING = re.compile(r"\b(?:all|except|every|any|no|not|none|only|infinitely|unless|if)\b", re.IGNORECASE)
_MOST_WORDS = 3, 12
_CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")
"""GSM8K's, before a result: 5*3=<<5*3=15>>15."""
_TOKENS = re.compile(r"<\|[^<>|\s]{1,40}\|>|</s>")
"""Special tokens left in a text."""
_HTML = re.compile(r"<(b|i|em|strong)>([^<>\n]{1,200})</\1>")
_EMPHASIS = re.compile(r"(?<![\w*)}])(\*{1,3}|__|`)(?=[^\s*`])([^\n*`]{1,200}?)(?<=\S)\1(?![\w*])")
_ANSWER_IS = re.compile(
    r"(?:\b(?:the\s+)?(?:final|correct|right)\s+)?\banswers?(?:\s+(?:to|for|of)\s[^.\n:=]{0,80}?)?"
    r"\s*(?:\b(?:is|are|would be|must be|should be)\b|=|:)\s*:?"
    rf"|\b(?:correct|right)\s+{CHOICE_WORD}\s+is\b\s*:?|答案\s*(?:是|为|:)\s*:?",
    re.IGNORECASE,
)
_HOPED = re.compile(r"final answer is:?\s*([^\n]{1,300}?)\.?\s+I hope it is correct", re.IGNORECASE)
_NO_ANSWER = re.compile(r"(?:not |in)?(?:correct|right)\b|wrong\b|unclear\b|unknown\b", re.IGNORECASE)
_LEADS = re.compile(
    r"(?:(?:therefore|thus|hence|then|simply|just|exactly|only|about|approximately|also|clearly|now|indeed|equal to"
    r"|given by|found to be|the(?= *[-\d$\\(])|not\s[^.\n]{1,40}?\bbut)\b[\s,:]*){1,3}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|(?<!\b[ap]\.m)[.!?](?=\s|\Z)")
_DELIMITER = re.compile(r"\\[][()]|\$+")
_CLOSING_HASHES = " #"


def extract_answer(text: str, truncated: bool = False) -> str | None:
    r"""The final answer of a solution; None if there is none.

    In turn: the last `\boxed{}` outside the thinking (several if only commas, "and" or "or" separate them),
    `<answer>`, GSM8K's `####`, "the answer is" or "Answer:", the last number with its formula. [us] An empty or
    unclosed box is ignored. A text that is only an answer is taken whole. `truncated`: the length limit cut the text,
    so only a closed box counts.

    >>> [extract_answer(text) for text in (r"so \boxed{3}, no: \boxed{4}.", "The answer is 3/4 of it.", "8 apples")]
    ['4', '3/4', '8']
    >>> extract_answer("so 2 + 3 = 5 and the", truncated=True) is None
    True
    """
    text = outside_thinking(text)
    if truncated:
        return boxed_answer(text)
    if final := _marked_final(text):
        return final
    text = _HTML.sub(r"\2", _CALCULATOR.sub("", _TOKENS.sub(" ", text)))
    text = _EMPHASIS.sub(r"\2", _HEADING.sub("", latex_of(text)))
    for find in (_tagged, _marked, _after_phrase, bare, _none, _last_quantities, last_formula_or_number, _word):
        if answer := find(text):
            return answer
    return None


def outside_thinking(text: str) -> str:
    """The text after the last thought, up to an unclosed one."""
    return _THOUGHT_STARTS.split(_THOUGHT_ENDS.split(text)[-1])[0]


def tagged_answer(text: str) -> str | None:
    """Content of the last non-empty `<answer>`."""
    parts = [_TAGS[1].split(part)[0].strip() for part in _TAGS[0].split(text)[1:]]
    return next(filter(None, reversed(parts)), None)


def reference_answer(text: str) -> str:
    r"""The answer of a reference: all of it, unless it is a solution with a box or GSM8K's `####`.

    >>> [reference_answer(text) for text in ("2xy + 100", "3 out of 5", r"so \boxed{2}", "1+1=2\n#### 2")]
    ['2xy + 100', '3 out of 5', '2', '2']
    """
    if final := _marked_final(text):
        return final
    _, mark, after = text.rpartition("####")
    return (after if mark and after.strip() else text).strip()


def _marked_final(text: str) -> str | None:
    """Content of the last box, or of Minerva's "the final answer is ... I hope it is correct" after it."""
    hoped = _HOPED.findall(text[text.rfind("\\boxed") + 1 :])
    return (bare(hoped[-1]) or hoped[-1]) if hoped else boxed_answer(text)


def boxed_answer(text: str) -> str | None:
    r"""The last box, with those before it that only commas, "and" or "or" separate from it; None without a closed box.

    >>> boxed_answer(r"\boxed{0}? No: $\boxed{1}$ and $\boxed{2}$")
    '1, 2'
    """
    boxes = _boxes(text)
    run = boxes[-1:]
    for box in reversed(boxes[:-1]):
        if box.end > run[-1].start or not _joined(text[box.end : run[-1].start]):
            break
        run.append(box)
    return ", ".join(box.content for box in reversed(run)) or None


def _boxes(text: str) -> list[Span]:
    """Every closed, non-empty box, in order of their starts."""
    stack: list[re.Match[str]] = []
    boxes = []
    for mark in _BRACES.finditer(text):
        if mark["bare"]:
            boxes.append(Span(mark.start(), mark.end(), mark["bare"]))
        elif mark["box"] or mark[0] == "{":
            stack.append(mark)
        elif mark[0] == "}" and stack:
            opened = stack.pop()
            if opened["box"]:
                boxes.append(Span(opened.start(), mark.end(), text[opened.end() : mark.start()].strip()))
    return sorted(box for box in boxes if box.content)


def _joined(between: str) -> bool:
    words = " ".join(_DECORATION.sub(" ", between[:_MOST_BETWEEN]).split())
    return len(between) < _MOST_BETWEEN and _JOINS_BOXES.fullmatch(words) is not None and not _CONCLUDES.search(words)


def _tagged(text: str) -> str | None:
    return _stated(content) if (content := tagged_answer(text)) else None


def _marked(text: str) -> str | None:
    """The text after GSM8K's `####` on the last line, or if no number follows its answer; otherwise it is a heading."""
    for after in reversed(_MARK.split(text)[1:]):
        line, _, rest = after.strip(_CLOSING_HASHES + "\n").partition("\n")
        if line and (not rest.strip() or (bare(line) and not re.search(r"\d", rest))):
            return _stated(line.strip(_CLOSING_HASHES))
    return None


def _after_phrase(text: str) -> str | None:
    """The answer after the last "answer is" or "Answer:" that has one."""
    for phrase in reversed(list(_ANSWER_IS.finditer(text))):
        rest = text[phrase.end() : phrase.end() + 4 * MAX_CHARS].lstrip(" \n\t:*")
        if rest and not _NO_ANSWER.match(rest):
            return _stated(rest)
    return None


def _stated(text: str) -> str:
    """The answer at the start of a text: a formula, mathematics, or its first sentence."""
    for lead in (_ANSWER_IS, _LEADS):
        if match := lead.match(text):
            text = text[match.end() :].lstrip()
    if formula := leading_formulas(text):
        return formula
    end = _SENTENCE_END.search(text)
    clause = " ".join(_DELIMITER.sub(" ", text[: end.start()] if end else text).split())
    whole = bare(clause) or (clause if _MIXED_UNITS.fullmatch(clause) else None)
    return whole or leading_maths(clause) or _in_words(clause)


def _in_words(clause: str) -> str:
    """A short answer in words, such as "east", or one that qualifies its number; in a longer clause its last number."""
    short, longer = _MOST_WORDS
    count = len(clause.split())
    if count <= short or (count <= longer and _SWEEPING.search(clause)):
        return clause
    return last_formula_or_number(clause) or clause


def _none(text: str) -> str | None:
    """The end of a text that states that there is no solution."""
    end = text[-MAX_CHARS:]
    match = _NONE.search(end)
    return match[1] if match and not _REASON.search(_SENTENCE_END.split(end[: match.start()])[-1]) else None


def _last_quantities(text: str) -> str | None:
    """The last quantity of several units, such as 2 hours and 30 minutes, that no number follows."""
    end = text[-MAX_CHARS:]
    *_, last = [None, *_MIXED_UNITS.finditer(end)]
    sure = last and not re.search(r"\d", end[last.end() :]) and not re.search(r"\d\s*in\b", last[0])
    return last[0].strip(" ,") if last and sure else None


def _word(text: str) -> str | None:
    """A short answer in words, such as a name."""
    words = text.split()
    return " ".join(words) if 0 < len(words) <= 3 else None
