"""Solutions of the tiny world with every wrong step labelled by its rule, for scoring a critic."""

from __future__ import annotations

from random import Random
from typing import Any

from capo_fast.tiny.task import World, draw_question, true_wrong_steps


def labelled_solutions(count: int, seed: int, world: int = 0) -> list[dict[str, Any]]:
    """`count` solutions with the mistakes of the shipped model's world, as rows of step-labelled data.

    >>> row = labelled_solutions(1, seed=0)[0]
    >>> row["first_wrong_step"] == min(row["wrong_steps"], default=-1)
    True
    """
    rng, beliefs = Random(f"labelled solutions {seed}"), World.from_seed(world)
    rows = []
    for i in range(count):
        question = draw_question(rng)
        steps = beliefs.solution(rng, question)
        wrong = sorted(true_wrong_steps(question, steps))
        first = min(wrong, default=-1)
        row = {"id": f"tiny-steps-{i}", "problem": question, "steps": steps, "first_wrong_step": first}
        rows.append(row | {"wrong_steps": wrong, "subset": "tiny"})
    return rows
