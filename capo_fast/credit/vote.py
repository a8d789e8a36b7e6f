"""The vote of k critiques on every step (CAPO, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capo_fast.records import Critique

_RULES: dict[str, Callable[[int, int], float]] = {
    "intersection": lambda count, k: float(count == k),
    "majority": lambda count, k: float(2 * count >= k),
    "union": lambda count, k: float(count > 0),
    "average": lambda count, k: count / k,
    "greedy": lambda count, k: float(count > 0),
}
MODES = tuple(_RULES)
"""Names of the voting rules; a half is a majority (2 of 4 counts)."""


def vote(critiques: Sequence[Critique], num_steps: int, mode: str) -> list[float]:
    """[S] in [0, 1], how wrong each step is held to be.

    [us] Abstained critiques leave k; with no valid one no step is wrong. `greedy` is the paper's single critique at
    temperature 0: should there be several, the first valid one decides.

    >>> valid = [Critique(False, frozenset({1}), 0), Critique(False, frozenset({1, 2}), 0)]
    >>> vote([*valid, Critique(True, frozenset(), 0)], 3, "intersection"), vote(valid, 3, "average")
    ([0.0, 1.0, 0.0], [0.0, 1.0, 0.5])
    """
    if mode not in _RULES:
        raise ValueError(f"unknown voting mode {mode!r}: it must be one of {', '.join(MODES)}")
    valid = [critique.wrong_steps for critique in critiques if not critique.abstained]
    if mode == "greedy":
        valid = valid[:1]
    counts = [sum(step in wrong for wrong in valid) for step in range(num_steps)]
    return [_RULES[mode](count, len(valid)) if count else 0.0 for count in counts]
