"""The picture of docs/concepts.md: one group from critiques to advantages, computed by the functions of training.

python -m docs.trace        # writes docs/images/trace.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

import capo_kernels as ck
from capo_fast.credit.critic import parse_critique
from capo_fast.credit.vote import vote

PICTURE = Path(__file__).parent / "images/trace.svg"
TOKENS = 2
"""Tokens per step."""


@dataclass(frozen=True)
class Solution:
    """A rollout of the group, and the critic's answers about it."""

    steps: Sequence[str]
    outcome: float
    critiques: Sequence[str]

    @property
    def named(self) -> list[str]:
        """Wrong steps named by each critique, as shown in the picture's rows."""
        found = [parse_critique(text, len(self.steps)) for text in self.critiques]
        return ["abstains" if each.abstained else f"{sorted(each.wrong_steps)}" for each in found]

    @property
    def votes(self) -> list[float]:
        return vote([parse_critique(text, len(self.steps)) for text in self.critiques], len(self.steps), "intersection")


def critique(*steps: int) -> str:
    return f"Judgment: No\n<incorrect_steps>{', '.join(f'<step_{k}>' for k in steps)}</incorrect_steps>"


GROUP = (
    Solution(("3 + 4 = 7", "7 x 2 = 15", "Answer: 14"), 1.0, (critique(1), critique(1, 2))),
    Solution(("3 + 4 = 8", "Answer: 16"), 0.0, (critique(0), "I can't tell.")),
)
"""Two solutions of (3 + 4) x 2."""


def credit_of(group: Sequence[Solution]) -> ck.Credit:
    lengths = [TOKENS * len(solution.steps) for solution in group]
    return ck.Credit(
        step_starts=torch.tensor([k % TOKENS == 0 for length in lengths for k in range(length)]),
        step_wrong=torch.tensor([wrong for solution in group for wrong in solution.votes]),
        outcome=torch.tensor([solution.outcome for solution in group]),
        group=torch.zeros(len(group), dtype=torch.int64),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
    )


def rewards_and_advantages(group: Sequence[Solution]) -> tuple[list[list[float]], list[list[float]]]:
    """Reward and advantage of each step of each solution; all tokens of a step have the same."""
    credit = credit_of(group)
    trained = torch.ones_like(credit.step_starts)
    advantages = ck.token_advantages(credit, trained)[credit.step_starts].tolist()
    rewards = ck.token_advantages(replace(credit, norm="none"), trained)[credit.step_starts].tolist()
    return split(rewards, group), split(advantages, group)


def split(values: Sequence[float], group: Sequence[Solution]) -> list[list[float]]:
    """One value per step, by solution."""
    left = iter(values)
    return [list(islice(left, len(solution.steps))) for solution in group]


ROWS = ("step", "critique 1", "critique 2", "vote: named by all", "reward R = 2 outcome - wrong", "advantage A")


def draw(axes: Any, solution: Solution, rewards: Sequence[float], advantages: Sequence[float]) -> None:
    count, colours = len(solution.steps), matplotlib.colormaps["RdBu"]
    axes.set(xlim=(0, count), ylim=(len(ROWS), 0), xticks=[])
    axes.set_yticks([row + 0.5 for row in range(len(ROWS))], ROWS, fontsize=9)
    axes.tick_params(length=0)
    axes.set_title(f"{'right' if solution.outcome else 'wrong'} answer, outcome {solution.outcome:g}", fontsize=10)
    for k, text in enumerate(solution.steps):
        cells = [text, *(marked(named, k) for named in solution.named)]
        cells += ["wrong" if solution.votes[k] else "", f"{rewards[k]:g}", f"{advantages[k]:+.2f}"]
        for row, cell in enumerate(cells):
            axes.text(k + 0.5, row + 0.5, cell, ha="center", va="center", fontsize=9)
        shade = colours(0.5 + advantages[k] / 4)
        axes.axvspan(k, k + 1, ymin=0, ymax=1 / len(ROWS), color=shade, alpha=0.6, linewidth=0)
    for row in range(1, len(ROWS)):
        axes.axhline(row, color="0.8", linewidth=0.8)
    for k in range(1, count):
        axes.axvline(k, color="0.8", linewidth=0.8)


def marked(named: str, step: int) -> str:
    """A critique's verdict on one step, as shown in a cell."""
    return named if named == "abstains" else "wrong" if str(step) in named else ""


def save_picture(path: Path = PICTURE) -> None:
    figure = Figure((6.2, 4.6), facecolor="white", layout="constrained")
    panels = figure.subplots(len(GROUP), 1)
    for axes, solution, rewards, advantages in zip(panels, GROUP, *rewards_and_advantages(GROUP), strict=True):
        draw(axes, solution, rewards, advantages)
    with matplotlib.rc_context({"svg.hashsalt": "trace", "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    save_picture()
