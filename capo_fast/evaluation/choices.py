"""Multiple choice: the order in which choices are shown, the question as shown, and the choice an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from string import ascii_uppercase

from capo_fast.verify.extract import boxed_answer, outside_thinking, tagged_answer
from capo_fast.verify.unicode_maths import latex_of
from capo_fast.verify.vocabulary import CHOICE_WORD, TEXT_COMMANDS

MOST = len(ascii_uppercase)
INSTRUCTION = "Put the letter of the right choice within \\boxed{}."

_WRAPPING = re.compile(rf"\\{TEXT_COMMANDS}\s*\{{|[{{}}$*`\"'\u201c\u201d]|\\[()\[\], ]|(?<!\w)_|_(?!\w)")
_WORD = f"(?i:{CHOICE_WORD})"
_PHRASE = re.compile(
    rf"\b{_WORD}\s*(?:(?i:is|would be|must be|should be)\b|[:=-])\s*:?(?!\s*(?:not|in)?(?:correct|right|wrong)\b)"
)
_LETTER = re.compile(
    rf"(?:(?P<word>{_WORD})[\s:]+)?(?P<open>[(\[]?)(?P<letter>[A-Z]|(?<=[(\[\s:])[a-z])(?![A-Za-z])(?P<rest>.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(r"[)\]]?\s*(?:,|/|&|\bor\b|\band\b)\s*(?:and|or)?\s*[(\[]?[A-Z](?![\w'])")
_ONE = rf"(?:\b{_WORD}\s+)?[(\[]?\b[A-Z]\b[)\].]?"
_SOME = rf"{_ONE}(?:\s*(?:,|,?\s*(?:and|or|nor))\s*{_ONE}){{0,8}}"
_ARE_NOT = (
    r"(?:is|are|was|were|would be|seems?)\s+(?:(?:all|both|also|clearly|just|simply) ){0,3}"
    r"(?:not|incorrect|wrong|false|out|ruled|eliminated|impossible|excluded|too|never)\b"
    r"|(?:isn|aren|can|won|doesn|don).?t\b|cannot\b|fails?\b"
)
_NOT = (
    r"not|isn.?t|rather than|instead of|neither|nor|can(?:not|.?t) be|eliminates?|rules? out|exclud\w+|reject\w*|unlike"
)
_WRONG = r"(?i:wrong|incorrect|false|least likely|worst)"
_CALLED_WRONG = re.compile(rf"\b{_WRONG} \Z")
_REJECTED = re.compile(
    rf"\b{_WRONG} {_WORD}s?\s+(?i:is|are|was)\s+{_SOME}"
    rf"|{_SOME}\s*,?\s*(?:{_ARE_NOT})[^,.;]*|\b(?i:{_NOT})\s+(?:by\s+)?{_SOME}"
)
_AFFIRMED = re.compile(
    r"[(\[]?\b(?P<first>[A-Z])\b[)\].]?\s+(?:is|must be|would be|seems)\s+(?:clearly |indeed |therefore |thus )?"
    r"(?:the\s+)?(?:only\s+|most likely\s+)?(?:correct|right|best|true|answer|one)\b"
    r"|\b(?i:so|thus|therefore|hence|choose|pick|select|chose|is|be|but|:),?\s+(?:(?i:option|choice|it is|its)\s+)?"
    r"[(\[]?(?P<last>[A-Z])[)\]]?\s*[.!]*\s*\Z"
)
_CORRECTED = re.compile(r"\b(?i:but|actually),? (?:(?i:option|choice|it is|its) )?[(\[]?([A-Z])[)\]]?\s*[.!]*\Z")
"""What takes back a letter before it: A, but it's B."""
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\[])|\n")
_MENTIONED = re.compile(
    r"(?<!\b[A-Za-z])[(\[](?P<inside>[A-Z])[)\]]|(?<![\w'(\[])(?:(?P<alone>[B-HJ-Z])(?![\w'])"
    r"|(?P<article>[AI])(?=[).:,;]|\s*\Z|\s*(?:or\b|and\b|/|&)\s*[(\[]?[A-Z]\b))"
)
_MOST_CHARS = 500
"""Of a clause that is looked at; what the expressions above cost grows faster than its length."""


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

    Looked at in turn: the last `\boxed{}`, `<answer>`, what follows the last "answer is" or "answer:", the last
    sentence that names a letter. Each may be a letter, a letter with its text, or the text of one choice. A letter that
    is said to be wrong is not named. Two letters, or one beyond the choices, are none.

    >>> [read_choice(text, ["3", "2"]) for text in (r"so \boxed{\text{B}}.", "The answer is (A) 3", "2", "A or B")]
    [1, 0, 1, None]
    """
    text = outside_thinking(text)
    for clause in filter(None, (boxed_answer(text), tagged_answer(text), _stated(text))):
        clause = _plain(clause[:_MOST_CHARS])
        if (place := _named(_without_rejected(clause), choices)) is not None:
            return place
        if _MENTIONED.search(clause):
            return _mentioned(clause, choices)
    line = _plain(text.strip().rpartition("\n")[2][-_MOST_CHARS:])
    return _named(line, choices) if _alone(line) else _concluded(line, choices)


def _stated(text: str) -> str:
    """What follows the last "answer is", on its line or the next."""
    phrases = [phrase for phrase in _PHRASE.finditer(text) if not _CALLED_WRONG.search(text[: phrase.start()][-20:])]
    return text[phrases[-1].end() :].lstrip(" \t\n*").partition("\n")[0] if phrases else ""


def _plain(clause: str) -> str:
    """The clause without fonts, emphasis, quotes and dollars."""
    return _WRAPPING.sub("", latex_of(clause.strip())).strip()


def _without_rejected(clause: str) -> str:
    return " ".join(_REJECTED.sub(" ", clause).split()).removeprefix("but ")


def _alone(line: str) -> bool:
    """Whether a line is a letter, or a letter and its text."""
    if len(line.strip("()[].,:;! ")) == 1:
        return True
    match = _LETTER.match(line)
    if match is None or _REJECTED.match(line) or not re.match(r"[)\].:]|\s*\Z", match["rest"]):
        return False
    return _MENTIONED.search(match["rest"]) is None


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
    if corrected := _CORRECTED.search(match["rest"]):
        return _place(corrected[1], choices)
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
            return _place(affirmed.pop(), choices) if len(affirmed) == 1 else None
        if _MENTIONED.search(sentence):
            return _mentioned(sentence, choices)
    return _mentioned(line, choices)


def _mentioned(line: str, choices: Sequence[str]) -> int | None:
    """The one choice that a line mentions, by its letter or by its text."""
    line = _without_rejected(line)
    letters = {match["inside"] or match["alone"] or match["article"] for match in _MENTIONED.finditer(line)}
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
