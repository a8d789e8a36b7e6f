"""Scores of critics on labelled solutions: before and after fine-tuning, in the world of words and outside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.words.arms import words_config
from bench.words.measure import empty
from bench.words.places import Places
from capo_fast import critic_eval
from capo_fast.data import read_rows
from capo_fast.evaluation.command import Job, estimate
from capo_fast.evaluation.labelled import DATA
from capo_fast.evaluation.questions import SUFFIXES
from capo_fast.markdown import markdown_table

PROMPTS = "pkg://capo_fast.credit/prompts"
OUTSIDE = {
    "mrgsm8k": None,
    "mathcheck": None,
    "bigbench_mistake": "multistep_arithmetic",
    "processbench": "gsm8k",
}
"""Sets outside the world, and the subset used."""
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


def score_critics(places: Places, limit: int, data_dir: Path | None, more: Mapping[str, Path]) -> dict[str, Any]:
    """Scores of every critic's greedy critiques on every existing set, at most `limit` rows each."""
    sets = [str(places.data / "critic.jsonl"), *(str(path) for path in outside_files(places, data_dir))]
    found = {}
    for number, (name, critic) in enumerate(critics(places, more).items()):
        settings = {"model.path": critic.model, "critic.prompt": f"{PROMPTS}/{critic.prompt}.txt", **LONGER}
        config = words_config(places, settings)
        out = empty(places.runs / "measured" / f"critic-{number}")
        scored = critic_eval.run(Job(str(critic.model), config, tuple(sets), None, limit, out))["benchmarks"]
        found[name] = {each: {"votings": entry["votings"], "rows": entry["problems"]} for each, entry in scored.items()}
    return {"limit": limit, "critics": found}


def outside_files(places: Places, data_dir: Path | None) -> Iterator[Path]:
    """The sets of OUTSIDE in the folder, each written to a file of its subset."""
    for name, subset in OUTSIDE.items() if data_dir is not None else ():
        sources = [path for suffix in SUFFIXES if (path := data_dir / f"{DATA[name]}{suffix}").exists()]
        if sources:
            rows = [row for _, row in read_rows(str(sources[0])) if subset in (None, row["subset"])]
            path = places.runs / "labelled" / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            yield path


HEAD = ["set", "rows", "critic", "F1", "on wrong", "on right", "precision", "recall", "abstained"]


def critics_table(found: Mapping[str, Any]) -> str:
    """Scores of greedy critiques: F1 by first error as in ProcessBench, precision and recall by step."""
    sets = list(dict.fromkeys(name for scored in found["critics"].values() for name in scored))
    rows = [
        [name, str(scored[name]["rows"]), critic, *_scores(scored[name]["votings"][0])]
        for name in sets
        for critic, scored in found["critics"].items()
    ]
    return markdown_table(HEAD, rows)


def _scores(row: Mapping[str, Any]) -> list[str]:
    by_step = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("step_precision", "step_recall")]
    first = [estimate(row[key]) for key in ("f1", "accuracy_on_wrong", "accuracy_on_right")]
    return [*first, *by_step, f"{row['abstained']:.1%}"]
