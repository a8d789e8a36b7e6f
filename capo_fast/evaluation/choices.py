"""Multiple choice: the order in which choices are shown, the question as shown, and the choice an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from string import ascii_uppercase

from capo_fast.verify.extract import boxed_answer, outside_thinking, tagged_answer
from capo_fast.verify.unicode_maths import latex_of

MOST = len(ascii_uppercase)
INSTRUCTION = "Put the letter of the right choice within \\boxed{}."

_WRAPPING = re.compile(
    r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox)\s*\{|[{}$*`\"'\u201c\u201d]|\\[()\[\], ]|(?<!\w)_|_(?!\w)"
)
_WORD = r"(?i:option|choice|letter|answer)"
_PHRASE = re.compile(
    rf"\b{_WORD}\s*(?:(?i:is|would be|must be|should be)\b|[:=-])\s*:?(?!\s*(?:not|in)?(?:correct|right|wrong)\b)"
)
_LETTER = re.compile(
    rf"(?:(?P<word>{_WORD})[\s:]+)?(?P<open>[(\[]?)(?P<letter>[A-Z]|(?<=[(\[\s:])[a-z])(?![A-Za-z])(?P<rest>.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(
    r"[)\]]?\s*(?:,|/|&|\bor\b|\band\b)\s*(?:and|or)?\s*[(\[]?[A-Z](?![\w'])|\s+(?:only\s+)?(?:if|unless)\b"
)
"""Text that makes a letter one of several, or conditional."""
_ONE = rf"(?:\b{_WORD}\s+)?[(\[]?\b[A-Z]\b[)\].]?"
_SOME = rf"{_ONE}(?:\s*(?:,|,?\s*(?:and|or|nor))\s*{_ONE}){{0,8}}"
_REST = r"(?:(?!\b(?:so|but|hence|thus|therefore|while)\b)[^,.;])*"
_ARE_NOT = (
    r"(?:is|are|was|were|would be|seems?|looks?)\s+(?:(?:all|both|also|clearly|just|simply|very|only) ){0,3}"
    r"(?:not|incorrect|wrong|false|out|ruled|eliminated|impossible|excluded|too|never|tempting|hardly|barely|unlikely"
    r"|less|least|worse|invalid|implausible)\b"
    r"|(?:isn|aren|can|won|doesn|don).?t\b|cannot\b|fails?\b"
)
_NOT = (
    r"not|isn.?t|rather than|instead of|neither|nor|can(?:not|.?t) be|eliminates?|rules? out|exclud\w+|reject\w*|unlike"
    r"|(?:all|anything|everything) but|other than|except(?: for)?|opposite of|avoid"
)
_NOT_VERB = (
    r"(?:not|never|(?:do|does|did|is|was|ca|wo|would|could|should)n.?t)\s+(?:(?:choose|pick|select|say|think|believe|agree|go|with|that|it|is|be|the|an?|right"
    r"|correct|to|option|choice|answer)\s+){1,5}"
)
_SUPPOSED = r"(?:if|whether|unless|suppos\w+|assum\w+|doubt(?:s|ed|ful)?)\s+(?:that\s+)?(?!I\s)"
_REJECTED = re.compile(
    rf"{_SOME}\s*,?\s*(?:{_ARE_NOT}){_REST}|\b(?i:{_NOT})\s+(?:by\s+)?{_SOME}|\b(?i:{_NOT_VERB}){_SOME}"
    rf"|\b(?i:{_SUPPOSED}){_SOME}{_REST}|{_SOME}\s*\?"
)
_WRONG = re.compile(
    r"\b(?i:wrong|incorrect|false|worst|poor|least\s+\w+|less\s+\w+|unlikely|impossible|tempting|second.best"
    rf"|next.best|eliminated|excluded|rejected|initial|previous|earlier|first)[^\S\n]+{_WORD}s?[^\S\n]*"
    rf"(?:(?i:is|are|was|were)\b|[:=-])[^\S\n]*(?:{_SOME})?"
    r"|\b(?:[Ff]alse|not the case|not true|doubt|(?:might|could|would) (?:think|say|guess))"
    rf"[^\S\n]+(?:that[^\S\n]+)?the[^\S\n]+(?:\w+[^\S\n]+)?{_WORD}[^\S\n]+(?:is|was)[^\S\n]+{_SOME}"
)
"""An answer that is stated to be wrong, or that was abandoned."""
_RIGHT = (
    r"(?:is|must be|would be|seems)\s+(?:clearly |indeed |therefore |thus )?"
    r"(?:(?:the|our|my)\s+)?(?:only\s+|most likely\s+)?(?:correct|right|best|true|answer|one)\b"
    r"(?!\s+(?:only\s+)?(?:if|when|unless)\b)"
)
_AFFIRMED = re.compile(
    rf"(?<![\w(\[])[(\[]?(?P<first>[A-Z])\b[)\].]?\s+{_RIGHT}"
    r"|\b(?i:so|thus|therefore|hence|choose|pick|select|chose|is|be|but|:),?\s+(?:(?i:option|choice|it is|its)\s+)?"
    r"[(\[]?(?P<last>[A-Z])[)\]]?\s*[.!]*\s*\Z"
)
_FITS = (
    r"(?:(?:also|clearly|best|indeed|alone|only)\s+)?"
    r"(?:is\s+(?:it|left|valid|consistent|supported|possible|what|the\s+\w+\s+(?:that|which))"
    r"|it\s+is|fits?|satisf\w+|works?|match\w*|holds?|remains?|follows?|makes?|does|gives?|as|because|since|for|so|by)\b"
)
_DESCRIBED = re.compile(rf"{_SOME}\s+(?!{_RIGHT}|{_FITS}|and\b|or\b)[a-z]{_REST}")
"""A letter with a description that makes it neither right nor wrong: "C is tempting", "B floats"."""
_BEFORE = (
    r"option|choice|letter|answer|is|be|it.?s|so|thus|therefore|hence|and|or|but|not|nor|either|neither|with|for|to|on|by"
    r"|that|than|these|those|only|just|say|wait|then|as|because|since|if|\w+ing|\w+ly|match\w*|giv\w+|select\w*|pick\w*"
    r"|choos\w+|chose|mark\w*|conclud\w+|leaves?|left|prefer|yes|no|maybe|of|are|label\w*|makes?|means?|implies"
    r"|statement|alternative|response|item|hm+|let|between|among|from|in|else|otherwise"
)
_LABEL = re.compile(
    rf"(?<![\w'])(?!(?i:{_BEFORE})\b)[A-Za-z]{{2,}}\s+[A-HJ-Z](?![\w')\]])"
    r"(?:\s*(?:,|/|&|and\b|or\b)\s*[A-Z]\b){0,8}"
)
"""A noun and its letter: "vitamin C", "case A"."""
_REVISED = re.compile(
    r"\b(?:(?i:wait|hm+|second thoughts?|sorry|correction|scratch that|oops|(?:was|made) a mistake"
    r"|was mistaken|I meant)|Actually|No(?=,))\b"
)
_REVISED_AT_ONCE = re.compile(rf"{_REVISED.pattern}|\b(?i:actually|(?<!all )(?<!thing )but|however|no|yet)\b")
"""Within the sentence that states an answer."""
_DENIED = re.compile(
    r"\b(?i:that|this|it)(?:.?s| is| was)\s+(?:wrong|incorrect|false|impossible|an? (?:trap|mistake|error)"
    r"|not (?:right|correct|true|possible|it))\b|\bisn.?t (?:right|correct)\b"
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\[])|\n")
_MENTIONED = re.compile(
    r"(?<!\w)[(\[](?P<inside>[A-Z])[)\]]|(?<![\w'(\[])(?:(?P<alone>[B-HJ-Z])(?![\w'^+])"
    r"|(?P<article>[AI])(?=[).:,;]|\s*(?:\Z|=)|\s+(?:because|since)\b|\s*(?:or\b|and\b|/|&)\s*[(\[]?[A-Z]\b))"
)
_MOST_CHARS = 500
"""Longest clause that is searched: the expressions above take superlinear time."""


def shuffled(count: int, seed: int) -> tuple[int, ...]:
    """The choice shown at each place: a permutation that depends only on the seed."""
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
    r"""The place (from 0) of the choice that an answer names among those shown; None if it names none.

    Searched in turn: the last `\boxed{}`, `<answer>`, the text after the last "answer is" or "answer:", the last
    sentence that names a letter. Each may be a letter, a letter with its text, or the text of one choice. A letter
    stated to be wrong does not count; a revised statement replaces the earlier one. Two letters, a letter beyond the
    choices, or a letter with the text of another choice count as no answer.

    >>> [read_choice(text, ["3", "2"]) for text in (r"so \boxed{\text{B}}.", "The answer is (A) 3", "2", "A or B")]
    [1, 0, 1, None]
    """
    text = outside_thinking(text)
    stated = _stated(_WRONG.sub(" ", text))
    new = _taken_back(stated)
    line = "" if new else stated.partition("\n")[0]
    for clause in filter(None, (boxed_answer(text), tagged_answer(text), line)):
        clause = _plain(clause[:_MOST_CHARS])
        place = _named(_without_rejected(clause), choices)
        if place is not None or _MENTIONED.search(clause):
            place = _mentioned(clause, choices) if place is None else place
            return place if _agrees(place, clause, choices) else None
    line = new or _plain(_WRONG.sub(" ", text.strip().rpartition("\n")[2][-_MOST_CHARS:]))
    place = _named(line, choices) if _alone(line) else _concluded(line, choices)
    return place if _agrees(place, line, choices) else None


def _stated(text: str) -> str:
    """The text after the last "answer is", from its line or the next."""
    phrases = list(_PHRASE.finditer(text))
    return text[phrases[-1].end() :].lstrip(" \t\n*") if phrases else ""


def _taken_back(stated: str) -> str:
    """The text after a sign that a statement is revised; empty without one, or if no choice follows."""
    sentence = _SENTENCES.split(stated[:_MOST_CHARS], maxsplit=1)[0]
    sign = _REVISED_AT_ONCE.search(sentence) or _REVISED.search(stated)
    new = _plain(stated[sign.end() :].strip(" ,.:;!-\n")[-_MOST_CHARS:]) if sign else ""
    return new if _letters(_without_rejected(new)) or _DENIED.search(new) else ""


def _plain(clause: str) -> str:
    """The clause without fonts, emphasis, quotes and dollars."""
    return _WRAPPING.sub("", latex_of(clause.strip())).strip()


def _without_rejected(clause: str) -> str:
    return " ".join(_REJECTED.sub(" ", clause).split()).removeprefix("but ")


def _alone(line: str) -> bool:
    """True if a line is a letter, or a letter and its text."""
    if len(line.strip("()[].,:;! ")) == 1:
        return True
    match = _LETTER.match(line)
    if match is None or _REJECTED.match(line) or not re.match(r"[)\].:]|\s*\Z", match["rest"]):
        return False
    return _MENTIONED.search(match["rest"]) is None


def _named(clause: str, choices: Sequence[str]) -> int | None:
    """The choice named by a clause: a letter, a letter with text, or a choice's own text."""
    letter = clause.strip("()[].,:;! ")
    if len(letter) == 1 and letter.isascii() and letter.isalpha():
        return _place(letter.upper(), choices)
    stated = _norm(clause)
    same = [place for place, choice in enumerate(choices) if _norm(choice) == stated != ""]
    if len(same) == 1:
        return same[0]
    match = _LETTER.match(clause)
    if match is None or _ANOTHER.match(match["rest"]):
        return None
    # A bare letter before a word may be an article or a pronoun.
    article = match["letter"].upper() in "AI" and not match["open"] and not match["word"]
    separated = r"[)\].:,;]|\s*$" if article else r"[)\].:,;\s]|$"
    return _place(match["letter"].upper(), choices) if re.match(separated, match["rest"]) else None


def _concluded(line: str, choices: Sequence[str]) -> int | None:
    """The choice of the last sentence that names one."""
    for sentence in reversed(_SENTENCES.split(line)):
        sentence = _without_rejected(sentence)
        affirmed = {match["first"] or match["last"] for match in _AFFIRMED.finditer(sentence)}
        if affirmed:
            again = _letters(" ".join(_REVISED_AT_ONCE.split(sentence, maxsplit=1)[1:]))
            return _place(affirmed.pop(), choices) if len(affirmed | again) == 1 else None
        if _MENTIONED.search(sentence):
            return _mentioned(_DESCRIBED.sub(" ", sentence), choices)
    return _mentioned(line, choices)


def _mentioned(line: str, choices: Sequence[str]) -> int | None:
    """The one choice that a line mentions, by its letter or by its text."""
    line = _without_rejected(line)
    if letters := _letters(line):
        return _place(letters.pop(), choices) if len(letters) == 1 else None
    padded = f" {_norm(line)} "
    found = [place for place, choice in enumerate(choices) if f" {_norm(choice)} " in padded]
    widest = [place for place in found if not any(_inside(choices[place], choices[other]) for other in found)]
    labels = [_norm(label) for label in _LABEL.findall(line)]
    sure = len(widest) == 1 and all(label in _norm(choices[widest[0]]) for label in labels)
    return widest[0] if sure else None


def _letters(line: str) -> set[str]:
    """The letters that a line mentions as choices."""
    found = _MENTIONED.finditer(_LABEL.sub(" ", line))
    return {match["inside"] or match["alone"] or match["article"] for match in found}


def _agrees(place: int | None, clause: str, choices: Sequence[str]) -> bool:
    """True if the text beside a letter is not that of another choice."""
    text = _norm(_MENTIONED.sub(" ", clause)).strip(" ().,:;=-")
    same = [other for other, choice in enumerate(choices) if _norm(choice) == text != ""]
    return not same or place in same


def _inside(one: str, other: str) -> bool:
    return _norm(one) != _norm(other) and f" {_norm(one)} " in f" {_norm(other)} "


def _place(letter: str, choices: Sequence[str]) -> int | None:
    place = ascii_uppercase.index(letter)
    return place if place < len(choices) else None


def _norm(text: str) -> str:
    """Words and signs in lower case, separated by one space, without the final full stop."""
    return " ".join(re.findall(r"\w+|[^\w\s]", _plain(text).casefold().rstrip(". ")))
