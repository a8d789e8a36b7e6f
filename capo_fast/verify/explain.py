"""The stages of a verdict of the rule verifier."""

from __future__ import annotations

from capo_fast.verify.answers import judge
from capo_fast.verify.comparison import MAX_CHARS
from capo_fast.verify.spelling import spelled


def stages(
    response: str, reference: str, truncated: bool = False, *, tolerance: float = 0.0, percent: bool = True
) -> list[tuple[str, str | None]]:
    """Name and text of each stage, from the two texts to the verdict; None if there is no answer.

    >>> for stage in stages("so it is 2 1/2 in.", "2.5"): print(*stage, sep=": ")
    response: so it is 2 1/2 in.
    answer: 2 1/2
    normalised: 2\\frac{1}{2}
    reference: 2.5
    answer: 2.5
    normalised: 2.5
    rule: numbers
    verdict: right
    """
    found = judge(response, reference, truncated, tolerance=tolerance, percent=percent)
    return [
        ("response", response),
        ("answer", found.answer),
        ("normalised", None if found.answer is None else _normalised(found.answer)),
        ("reference", reference),
        ("answer", found.reference),
        ("normalised", _normalised(found.reference)),
        ("rule", found.rule),
        ("verdict", "right" if found.equal else "wrong"),
    ]


def _normalised(answer: str) -> str:
    return spelled(answer) if len(answer) <= MAX_CHARS else answer
