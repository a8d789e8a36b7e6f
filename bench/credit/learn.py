"""An arm of bench.credit as a learning curve: a run of the embedded default with its credit, and its figures.

    python -m bench.credit.learn --arm answer-probability --seed 100

The plan and the figures are those of bench.evidence. A run is a file; one that is there is not made again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.credit.arms import ARMS
from bench.evidence.arms import Plan
from bench.evidence.oracle import KeptEngine, OracleCritic, tiny_oracle
from bench.evidence.runs import run_seed, write_figures
from capo_fast.config import load_config
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.loaders import start_engine
from capo_fast.pretrained import load_tokenizer
from capo_fast.runtime.ranks import ranks
from capo_fast.tiny.task import oracle_critique


def run_config(arm: str, seed: int, plan: Plan, runs: Path) -> Config:
    """Of one run."""
    words = {**plan.settings(runs / arm / str(seed), seed), **ARMS[arm].settings}
    return load_config([f"--{key}={value}" for key, value in words.items()])


def learn(arm: str, seed: int, plan: Plan, runs: Path, out: Path) -> None:
    """Unless its file is there."""
    path = out / "runs" / f"{arm}-{seed}.json"
    if path.exists():
        return
    config = run_config(arm, seed, plan, runs)
    model = resolve_model(config.model.path)
    with ranks() as device:
        engine = start_engine(model, config)
        try:
            kept = OracleCritic(engine, tiny_oracle(load_tokenizer(model), 0.0)) if ARMS[arm].by_rule else None
            found = run_seed(config, device, kept or KeptEngine(engine), oracle_critique)
        finally:
            engine.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figures(path, {"arm": arm, "seed": seed, "plan": vars(plan)} | found)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.credit.learn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=Plan().steps, help="(%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/credit"), help="folder of the runs (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/credit"), help="folder (%(default)s)")
    options = parser.parse_args()
    learn(options.arm, options.seed, Plan(steps=options.steps), options.runs, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
