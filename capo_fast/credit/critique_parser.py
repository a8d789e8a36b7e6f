"""The critic's answer (CAPO, section 3.2): a verdict and the wrong steps, parsed leniently but never guessed.

The answer is one line `Judgment: ... Yes/No` and, after a No, the wrong steps inside a pair of `<incorrect_steps>`
tags. Real critics vary, decorate and repeat both, so the last of each counts. An answer that can't be parsed for
certain abstains: a doubtful set harms a vote more than none.
"""

from __future__ import annotations

import re

from capo_fast.records import Critique

# Blanks inside these patterns never cross a line, so that text on another line can't complete a tag of the critic.
_FLAGS = re.IGNORECASE | re.ASCII
_HEADER = re.compile(r"(?<![a-z])judge?ment[ \t*_`~\"']*(?:\([^()\n]*\)[ \t*_`]*)?[:\uff1a]", _FLAGS)
_CLAUSE = re.compile(
    r"(?:[^a-z]|\b(?:and|answer|conclusion|corrected|final|hence|here|is|my|new|overall|revised|so|the|then|thus"
    r"|therefore|updated))*\Z",
    _FLAGS,
)
"""Text allowed before a header in its clause; more makes it prose about a judgment, as `I double checked the`."""
_LIST_TAG = re.compile(r"<[ \t]*(?P<closes>/[ \t]*)?incorrect\\?_steps[ \t]*>", _FLAGS)
_LINE_END = re.compile(rf"\n|{_HEADER.pattern}|{_LIST_TAG.pattern}|\Z", _FLAGS)
_LEADING_VERDICT = re.compile(r"[ \t*_`~\"'(\[{]*(yes|no)(?![a-z]|[ \t]*(?:/|or)[ \t]*(?:yes|no))", _FLAGS)
_CHOICE = re.compile(r"yes[ \t]*(?:/|or)[ \t]*no", _FLAGS)
_VERDICT = re.compile(r"(?<![a-z])(yes|no)(?![a-z])", _FLAGS)

_STEP_TAG = re.compile(r"<[ \t]*(?:(/)[ \t]*)?step\\?[ _]?([0-9]+)[ \t]*>", _FLAGS)
_LIST_PART = re.compile(
    r"(?P<first>-?[0-9]+)(?:[ \t]*(?:-|\u2013|\u2014)[ \t]*(?P<last>[0-9]+))?(?![0-9a-z_%/+=^-]|\.\S)"
    r"|[\s,\uff0c\u3001;\uff1b:|&#*`\"'()\[\]{}]+|-(?!\d)|\.(?=\s|\Z)(?![ \t]+\S)|and(?![a-z])|steps?_?(?![a-z])",
    _FLAGS,
)
_FAR = 10**9
_PLAIN = {
    **dict.fromkeys(
        map(ord, "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"),
        " ",
    ),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"), None),
}
"""Blanks of other widths become blanks; zero-width characters are removed."""


def parse_critique(text: str, num_steps: int, finished: bool = True) -> Critique:
    """Parses one answer of the critic on `num_steps` steps (numbered from 0).

    | verdict | list | outcome |
    |---|---|---|
    | Yes | none or empty | no wrong step |
    | Yes | indices | abstain |
    | No | indices | those |
    | No | none or empty | abstain |
    | none | indices | those |
    | none | empty | no wrong step |
    | any | only out-of-range indices, words, more indices than steps, or unclosed | abstain |

    [us] An answer without verdict and list abstains; so does an unfinished one without a closed list. The verdict is
    the Yes or No right after `Judgment:`, else the last one on its line; `Yes/No` echoes the prompt and is no verdict.
    A judgment mentioned in prose (`I double checked the judgment: yes, ...`) counts only if there is no other. Repeated
    indices count towards "more indices than steps"; `and` and `step` are the only words allowed in a list.

    >>> parse_critique("Judgment: No\\n<incorrect_steps>0, <step_2>-<step_3>, 5</incorrect_steps>", 5).wrong_steps
    frozenset({0, 2, 3})
    """
    plain = text.translate(_PLAIN)
    verdict, position = _last_verdict(plain)
    body, unclosed = _last_list(plain, position)
    truncated = not finished and body is None
    ranges = _index_ranges(body or "")
    named = sum(last - first + 1 for first, last in ranges or [])
    kept = [(max(first, 0), min(last, num_steps - 1)) for first, last in ranges or []]
    in_range = sum(max(0, last - first + 1) for first, last in kept)
    if body is None:
        abstained = truncated or unclosed or verdict != "yes"
    elif ranges is None or named > num_steps:
        abstained = True
    else:
        abstained = verdict == "no" if named == 0 else (in_range == 0 or verdict == "yes")
    wrong = () if abstained else (step for first, last in kept for step in range(first, last + 1))
    return Critique(abstained, frozenset(wrong), named - in_range, text, truncated)


def parse_judgment(text: str, num_steps: int, finished: bool = True) -> Critique:
    """Parses one answer of the critic on the whole solution: every step is wrong after a No, none after a Yes.

    A list of wrong steps is ignored. Without a verdict the critique abstains.

    >>> [sorted(parse_judgment(text, 2).wrong_steps) for text in ("Judgment: No", "Judgment: Yes")]
    [[0, 1], []]
    """
    verdict, _ = _last_verdict(text.translate(_PLAIN))
    wrong = range(num_steps) if verdict == "no" else ()
    return Critique(verdict is None, frozenset(wrong), 0, text, truncated=verdict is None and not finished)


def why_unread(critique: Critique) -> str:
    """Why a critique of a solution's steps abstained.

    >>> why_unread(parse_critique("Judgment: No", 3))
    'No without a list'
    """
    plain = critique.text.translate(_PLAIN)
    verdict, position = _last_verdict(plain)
    body, unclosed = _last_list(plain, position)
    if body is None and not unclosed:
        return "without a verdict" if verdict is None else "No without a list"
    if body is not None and _index_ranges(body) == []:
        return "No without a list"
    return "Yes with a list" if verdict == "yes" else "unreadable list"


def _last_verdict(text: str) -> tuple[str | None, int]:
    """The last judgment's `yes` or `no`, and the end of its line (or of its part before a list)."""
    headers = list(_HEADER.finditer(text))
    for header in reversed([header for header in headers if _begins_a_clause(text, header.start())] or headers):
        end = _LINE_END.search(text, header.end())
        assert end is not None  # it matches at the end of the text
        line = text[header.end() : end.start()]
        if leading := _LEADING_VERDICT.match(line):
            return leading[1].lower(), end.start()
        if words := _VERDICT.findall(_CHOICE.sub("", line)):
            return words[-1].lower(), end.start()
    return None, 0


def _begins_a_clause(text: str, position: int) -> bool:
    line = text[max(position - 80, 0) : position].rpartition("\n")[2]  # a longer clause is prose
    return _CLAUSE.match(re.split(r"[.!?,;:]", line)[-1]) is not None


def _last_list(text: str, position: int) -> tuple[str | None, bool]:
    """The body of the last closed list after `position`, and True if a later list was left open."""
    body, opened = None, None
    for tag in _LIST_TAG.finditer(text, position):
        if not tag["closes"]:
            opened = tag.end()
        elif opened is not None:
            body, opened = text[opened : tag.start()], None
    return body, opened is not None


def _index_ranges(body: str) -> list[tuple[int, int]] | None:
    """The inclusive ranges in a list, None if it contains anything else. Never expanded: a range may be huge."""
    body = _STEP_TAG.sub(lambda tag: " " if tag[1] else f" {tag[2]} ", body)
    ranges, position = [], 0
    while position < len(body):
        part = _LIST_PART.match(body, position)
        if part is None:
            return None
        if part["first"]:
            ranges.append((_number(part["first"]), _number(part["last"] or part["first"])))
        position = part.end()
    return None if any(last < first for first, last in ranges) else ranges


def _number(digits: str) -> int:
    """An index; one with too many digits becomes `_FAR`, as converting it would take quadratic time."""
    if len(digits) < 10:
        return int(digits)
    return -_FAR if digits.startswith("-") else _FAR


CRITIQUE_REGEX = (
    r"(.|\n)*Judgment: (Yes|No\n<incorrect_steps>\n?(<step_)?[0-9]+>?(, ?(<step_)?[0-9]+>?)*\n?</incorrect_steps>)"
)
"""Regex of a critique under `critic.structured`: free text, then a verdict and its list in the prompt's format."""
