"""The vote of k critiques on every step (CAPO, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

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
    """[S] in [0, 1], the vote that each step is wrong.

    [us] Critiques that do not judge a step are not counted in its k; with k = 0 it is not wrong. `greedy` is the
    paper's single critique at temperature 0: of several the first that judges the step decides.

    >>> valid = [Critique(False, frozenset({1}), 0), Critique(False, frozenset({1, 2}), 0)]
    >>> vote([*valid, Critique(True, frozenset(), 0)], 3, "intersection"), vote(valid, 3, "average")
    ([0.0, 1.0, 0.0], [0.0, 1.0, 0.5])
    """
    if mode not in _RULES:
        raise ValueError(f"unknown voting mode {mode!r}: it must be one of {', '.join(MODES)}")
    return [_held_wrong(critiques, step, mode) for step in range(num_steps)]


def _held_wrong(critiques: Sequence[Critique], step: int, mode: str) -> float:
    named = [step in each.wrong_steps for each in critiques if each.judges(step)]
    if mode == "greedy":
        named = named[:1]
    return _RULES[mode](sum(named), len(named)) if any(named) else 0.0


def votes_to_ask(found: Sequence[Critique], num_steps: int, mode: str, total: int) -> int:
    """The fewest further critiques, of `total` in all, that may settle all votes; 0: all are settled.

    A vote is settled if no verdicts of the remaining critiques can change it: by intersection a step is right once a
    critique leaves it out, by majority of three it is wrong once two name it. An average is settled by the last one.

    >>> wrong, sound = (Critique(False, frozenset(named), 0) for named in ([0], []))
    >>> [votes_to_ask(found, 1, "intersection", 3) for found in ([], [wrong], [wrong, sound])]
    [1, 1, 0]
    >>> [votes_to_ask(found, 1, "majority", 3) for found in ([], [wrong, sound], [wrong, wrong])]
    [2, 1, 0]
    """
    of_steps = [tuple(_on_step(each, k) for each in found) for k in range(num_steps)]
    return max((_fewest(critiques, mode, total - len(found)) for critiques in of_steps), default=0)


def _on_step(critique: Critique, step: int) -> Critique:
    """The critique's verdict on one step, as a critique of that step alone."""
    if step in critique.wrong_steps:
        return _WRONG
    return _ABSENT if critique.abstained else _SOUND


_ABSENT = Critique.absent()
_WRONG, _SOUND = (Critique(abstained=False, wrong_steps=frozenset(named), dropped=0) for named in ([0], []))


@lru_cache(maxsize=1024)
def _fewest(found: tuple[Critique, ...], mode: str, left: int) -> int:
    """The same for one step. Votes of one kind settle it sooner than votes of both."""
    return next(
        more
        for more in range(left + 1)
        if any(_settled([*found, *[kind] * more], mode, left - more) for kind in (_WRONG, _SOUND))
    )


def _settled(found: Sequence[Critique], mode: str, left: int) -> bool:
    """True if the vote on one step is settled: it is the same if all remaining critiques name the step or none does.
    Mixed verdicts and abstentions give votes between these extremes."""
    return vote([*found, *[_WRONG] * left], 1, mode) == vote([*found, *[_SOUND] * left], 1, mode)
