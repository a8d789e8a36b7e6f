"""How the rule verifier comes to a verdict, stage by stage."""

from __future__ import annotations

from capo_fast.verify.answers import judge


def stages(
    response: str, reference: str, truncated: bool = False, *, tolerance: float = 0.0, percent: bool = True
) -> list[tuple[str, str | None]]:
    """Name and text of each stage, from the two texts to the verdict; None: nothing was found."""
    found = judge(response, reference, truncated, tolerance=tolerance, percent=percent)
    return [
        ("response", response),
        ("answer", found.answer),
        ("given", reference),
        ("reference", found.reference),
        ("rule", found.rule),
        ("verdict", "right" if found.equal else "wrong"),
    ]
