"""Scores of a model: pass@1 on held-out problems, forms and lengths, on GSM8K, and its critiques' F1."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.words.arms import words_config
from bench.words.places import Places
from capo_fast import critic_eval, evaluate
from capo_fast.config.schema import Config
from capo_fast.engine.base import Engine
from capo_fast.evaluation.command import Job
from capo_fast.loaders import start_engine
from capo_fast.runtime.ranks import ranks

WORLD = ("heldout", "forms", "longer")
GSM8K, GSM8K_TOKENS = "gsm8k", 256


def measure(places: Places, problems: int, data_dir: Path | None) -> dict[str, Any]:
    """The base's figures: pass@1 by set, and scores of its critiques."""
    config, model = words_config(places, {}), str(places.base)
    out = places.runs / "measured" / "base"
    with ranks():
        engine = start_engine(model, config)
        try:
            solved = solving(places, config, engine, out, problems, data_dir)
            job = Job(model, config, (str(places.data / "critic.jsonl"),), None, problems, empty(out / "critic"))
            found = critic_eval.score_critic(job, engine)["benchmarks"]["critic"]["votings"]
        finally:
            engine.close()
    return {"solved": solved, "critic": found}


def solving(
    places: Places, config: Config, engine: Engine, out: Path, problems: int, data_dir: Path | None
) -> dict[str, Any]:
    """Greedy pass@1, and the mean of one sampled answer per problem, by set; GSM8K if `data_dir` is given."""
    sets = tuple(str(places.data / f"{name}.jsonl") for name in WORLD)
    job = Job(config.model.path, config, sets, None, problems, empty(out / "solved"))
    found = evaluate.evaluate(job, evaluate.Protocol(samples=1), engine)["benchmarks"]
    if data_dir is not None:
        longer = replace(config, rollout=replace(config.rollout, max_tokens=GSM8K_TOKENS))
        job = Job(config.model.path, longer, (GSM8K,), str(data_dir), problems, empty(out / GSM8K))
        found |= evaluate.evaluate(job, evaluate.Protocol(), engine)["benchmarks"]
    return {name: {"metrics": entry["metrics"], "counts": entry["counts"]} for name, entry in found.items()}


def empty(folder: Path) -> Path:
    """Delete the folder, whose answers may be of another policy; returns its path."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
