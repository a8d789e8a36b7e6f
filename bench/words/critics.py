"""Scores of critics on labelled solutions: before and after fine-tuning, in the world of words and outside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.words.arms import words_config
from bench.words.base import write_json
from bench.words.labelled import PROMPTS, outside_files
from bench.words.measure import empty
from bench.words.places import Places
from capo_fast import critic_eval
from capo_fast.evaluation.command import Job, estimate
from capo_fast.markdown import markdown_table

LONGER = {"engine.max_model_len": 2048, "critic.max_tokens": 512, "engine.kv_cache_gb": 2.0}
"""Limits for other sets' solutions and the default critic prompt, which are longer."""


@dataclass(frozen=True)
class Critic:
    model: Path
    prompt: str
    """Name of a prompt in capo_fast/credit/prompts."""


def critics(places: Places, more: Mapping[str, Path]) -> dict[str, Critic]:
    """By name: the pretrained model with both prompts, the base, and further models with the base's prompt."""
    return {
        "zero-shot, genprm": Critic(places.pretrained, "genprm"),
        "zero-shot, words": Critic(places.pretrained, "words"),
        "fine-tuned": Critic(places.base, "words"),
        **{name: Critic(folder, "words") for name, folder in more.items()},
    }


def score_critics(places: Places, limit: int, data_dir: Path | None, more: Mapping[str, Path]) -> None:
    """Score every critic's greedy critiques on every existing set, at most `limit` rows each, unless it has been."""
    path = places.results / "critics.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"limit": limit, "critics": {}}
    if found["limit"] != limit:
        raise SystemExit(f"{path} has {found['limit']} rows per set, found --limit {limit}; take that or remove it")
    sets = [places.data / "critic.jsonl", *outside_files(places, data_dir)]
    for name, critic in critics(places, more).items():
        if name not in found["critics"]:
            out = empty(places.runs / "measured" / "critic")
            found["critics"][name] = score(places, critic, sets, limit, out)
            write_json(path, found)


def score(places: Places, critic: Critic, sets: Sequence[Path], limit: int, out: Path) -> dict[str, Any]:
    """Votings and number of rows, by set."""
    settings = {"model.path": critic.model, "critic.prompt": f"{PROMPTS}/{critic.prompt}.txt", **LONGER}
    job = Job(str(critic.model), words_config(places, settings), tuple(map(str, sets)), None, limit, out)
    scored = critic_eval.run(job)["benchmarks"]
    return {name: {"votings": entry["votings"], "rows": entry["problems"]} for name, entry in scored.items()}


HEAD = ["set", "rows", "critic", "F1", "on wrong", "on right", "precision", "recall", "abstained"]


def critics_table(found: Mapping[str, Any]) -> str:
    """Scores of greedy critiques: F1 by first error as in ProcessBench, precision and recall by step."""
    sets = list(dict.fromkeys(name for scored in found["critics"].values() for name in scored))
    rows = [
        [name, str(scored[name]["rows"]), critic, *_scores(scored[name]["votings"][0])]
        for name in sets
        for critic, scored in found["critics"].items()
        if name in scored
    ]
    return markdown_table(HEAD, rows)


def _scores(row: Mapping[str, Any]) -> list[str]:
    by_step = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("step_precision", "step_recall")]
    first = [estimate(row[key]) for key in ("f1", "accuracy_on_wrong", "accuracy_on_right")]
    return [*first, *by_step, f"{row['abstained']:.1%}"]
