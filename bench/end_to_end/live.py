"""Training steps in which a fixed share of the groups has a gradient.

A group whose rollouts all have the same reward has no advantage and so no gradient. The share of groups with a gradient
depends on model and data. `live_share` fixes it: of the P groups of each step the first round(share x P) have mixed
rewards, the others constant ones, independent of the rollouts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.data.problems import PromptOrder
from capo_fast.loaders import load_prompts
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import Prompt


def live_reward(responses: Sequence[str], references: Sequence[str], *, id: Sequence[str], live: Sequence[bool]) -> Any:
    """1 for every second rollout of a live group, 0 for all others.

    >>> live_reward(["", "", "", ""], ["", "", "", ""], id=["a", "a", "b", "b"], live=[True, True, False, False])
    [0.0, 1.0, 0.0, 0.0]
    """
    seen: Counter[str] = Counter()
    rewards = []
    for name, alive in zip(id, live, strict=True):
        rewards.append(float(alive and seen[name] % 2))
        seen[name] += 1
    return rewards


def live_share(config: Config, share: float, folder: Path) -> dict[str, Any]:
    """Settings that make this share of each step's groups live, with the prompts that the run would draw anyway. Writes
    the prompts to `folder`."""
    tokenizer = load_tokenizer(resolve_model(config.model.path))
    drawn, _ = load_prompts(config, tokenizer).take(0, config.train.steps * config.rollout.prompts)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in live_rows(drawn, config, share)))
    return {
        "data.path": str(path),
        "data.id_field": "id",
        "data.prompt_field": "problem",
        "data.answer_field": "answer",
        "reward.fn": f"{live_reward.__module__}:{live_reward.__name__}",
    }


def live_rows(drawn: Sequence[Prompt], config: Config, share: float) -> list[dict[str, Any]]:
    """Rows of a file from which a run draws these prompts in this order."""
    count, live = config.rollout.prompts, round(share * config.rollout.prompts)
    rows: list[dict[str, Any]] = [{} for _ in drawn]
    for place, (row, prompt) in enumerate(zip(PromptOrder(len(drawn), config.seed).epoch(0), drawn, strict=True)):
        rows[row] = {
            "id": str(place),
            "problem": prompt.problem,
            "answer": prompt.answer if isinstance(prompt.answer, str) else prompt.answer[0],
            "live": place % count < live,
        }
    return rows
