r"""Formats of the critic's verdict and their parsers, by name (`critic.verdict`).

capo   Judgment: No, and the wrong steps in <incorrect_steps> (the paper's)
fapo   \boxed{3}, the first wrong step; \boxed{-1}, none (FAPO, arXiv 2510.22543; ProcessBench's form)
yes-no the answer's last Yes or No, on the whole solution or on the one step that it judges
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from capo_fast.credit.critique_parser import CRITIQUE_REGEX, parse_critique, parse_judgment, why_unread
from capo_fast.credit.neutralise import without_boxes
from capo_fast.records import Critique

Parse = Callable[[str, int, bool], Critique]
"""Text, number of steps, finished -> its verdict."""


@dataclass(frozen=True)
class Verdict:
    """One format of verdicts, with its parsers."""

    steps: Parse
    """Parser of the wrong steps."""
    whole: Parse
    """Parser of a verdict on the whole solution: all steps wrong or none (`credit.process: outcome`)."""
    regex: str
    """Regex of a critique under `critic.structured`."""
    whole_regex: str
    """The same for `whole`: no list of steps after a No."""
    shown: Callable[[str], str] = str
    """A step's text -> the text in the critic's prompt, so that an echo of it is no verdict. `neutralise` applies in
    every format."""


_INDEX = re.compile(r"\\boxed[ \t]*\{[ \t]*(-1|[0-9]{1,9})[ \t]*\}")


def parse_boxed(text: str, num_steps: int, finished: bool = True) -> Critique:
    r"""The first wrong step, by the last `\boxed{}` of the answer.

    [us] The critique abstains without a box, or if the box contains anything but -1 or the index of a step; an index
    past the last step is counted as out of range. An unfinished answer abstains: its last box may be the solution's
    own.

    >>> [sorted(parse_boxed(text, 3).wrong_steps) for text in (r"so \boxed{1}.", r"\boxed{-1}")]
    [[1], []]
    >>> parse_boxed(r"The answer \boxed{1} is right, so \boxed{\text{-1}}", 3).abstained
    True
    """
    last = text.rfind("\\boxed")
    found = _INDEX.match(text, last) if last >= 0 and finished else None
    named = [] if found is None else [int(found[1])]
    in_range = [index for index in named if index < num_steps]
    return Critique(
        abstained=not in_range,
        wrong_steps=frozenset(index for index in in_range if index >= 0),
        dropped=len(named) - len(in_range),
        text=text,
        truncated=not finished,
    )


def parse_boxed_whole(text: str, num_steps: int, finished: bool = True) -> Critique:
    r"""The verdict on the whole solution by the last box: every step is wrong unless it is -1.

    >>> [sorted(parse_boxed_whole(text, 2).wrong_steps) for text in (r"\boxed{1}", r"\boxed{-1}")]
    [[0, 1], []]
    """
    found = parse_boxed(text, num_steps, finished)
    wrong = frozenset(range(num_steps)) if found.wrong_steps else frozenset()
    return Critique(found.abstained, wrong, found.dropped, text, found.truncated)


_YES_NO = re.compile(r"(?<![a-z])(yes|no)(?![a-z])", re.IGNORECASE | re.ASCII)


def parse_yes_no(text: str, num_steps: int, finished: bool = True) -> Critique:
    """All steps are wrong if the answer's last Yes or No is a No; without either the critique abstains.

    [us] It counts in a truncated answer as well: a verdict of one word is complete or missing.

    >>> [sorted(parse_yes_no(text, 2).wrong_steps) for text in ("8 No", "Yes.")]
    [[0, 1], []]
    """
    words = _YES_NO.findall(text)
    wrong = range(num_steps) if words and words[-1].lower() == "no" else ()
    return Critique(not words, frozenset(wrong), 0, text, truncated=not words and not finished)


_BOX_REGEX = r"(.|\n)*\\boxed\{(-1|[0-9]+)\}"
_YES_NO_REGEX = r"(.|\n)*(Yes|No)"
VERDICTS = {
    "capo": Verdict(parse_critique, parse_judgment, CRITIQUE_REGEX, r"(.|\n)*Judgment: (Yes|No)"),
    "fapo": Verdict(parse_boxed, parse_boxed_whole, _BOX_REGEX, _BOX_REGEX, without_boxes),
    "yes-no": Verdict(parse_yes_no, parse_yes_no, _YES_NO_REGEX, _YES_NO_REGEX),
}


def why_abstained(critique: Critique, parse: Parse) -> str:
    """Why the parser found no verdict, in a few words.

    >>> why_abstained(parse_boxed(r"\\boxed{7}", 3), parse_boxed)
    'only indices out of range'
    """
    if critique.truncated:
        return "cut before the verdict" if critique.text else "without room for the prompt"
    if critique.dropped:
        return "only indices out of range"
    return why_unread(critique) if parse is parse_critique else "without a verdict"
