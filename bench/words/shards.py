"""One shard: a run of one arm and seed, and the scores of its policy afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.evidence.arms import Plan
from bench.evidence.oracle import KeptEngine, OracleCritic
from bench.evidence.runs import Rule, run_seed, write_figures
from bench.words.arms import ARMS, arm_config
from bench.words.measure import solving
from bench.words.places import Places
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import with_merging
from capo_fast.loaders import start_engine
from capo_fast.records import Request
from capo_fast.runtime.ranks import ranks
from capo_fast.words.critique import shown_solution, verdict_text
from capo_fast.words.files import read_structures
from capo_fast.words.task import true_wrong_steps


def rule_of(places: Places) -> Rule:
    """The world's rule for its own problems."""
    structures = read_structures(places.data / f"{name}.jsonl" for name in ("train", "heldout"))
    return lambda problem, steps: true_wrong_steps(structures[problem.strip()], steps)


def oracle_answer(rule: Rule, request: Request) -> str:
    """The rule's critique of the solution in a critic's prompt."""
    return verdict_text(sorted(rule(*shown_solution(request.message))))


def run_shard(places: Places, arm: str, seed: int, plan: Plan, data_dir: Path | None) -> None:
    """Run one seed and write its figures, unless they exist. Weights are deleted."""
    path = places.shard(arm, seed)
    if path.exists():
        print(f"{path} exists")
        return
    rule = rule_of(places)
    with ranks() as device:
        config = with_merging(arm_config(places, arm, seed, plan), on_cpu=device.type == "cpu")
        engine = start_engine(resolve_model(config.model.path), config, config.lora)
        try:
            kept = KeptEngine(engine)
            if ARMS[arm].by_rule:
                kept = OracleCritic(engine, lambda request: oracle_answer(rule, request))
            found: dict[str, Any] = run_seed(config, device, kept, rule)
            out = places.runs / "measured" / f"{arm}-{seed}"
            found["solved"] = solving(places, config, kept, out, plan.problems, data_dir)
        finally:
            engine.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figures(path, {"arm": arm, "seed": seed, "plan": vars(plan)} | found)
