"""Arms of bench.credit as learning curves on the embedded default, by rollouts and by the clock.

    python -m bench.credit.learn [--arms outcome capo-1 oracle capo-gated] [--seeds 100 101 ...]
    python -m bench.credit.learn --report     only rewrite the page and the plot from the existing runs

One process and one engine run all arms of a seed before the next seed, a minute or two per run. Each run's figures are
written to a file at once. Existing files are not repeated, so the command continues after an interruption. Seeds from
100 on are reported; smaller seeds are for tuning and are not on the page. All runs of a page have one plan and one
commit. The plan and the figures are those of bench.evidence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.credit.arms import ARMS, CLOCK, FIRST_REPORTED
from bench.credit.clock import write_page
from bench.evidence.arms import Plan
from bench.evidence.oracle import KeptEngine, OracleCritic, tiny_oracle
from bench.evidence.runs import run_seed, write_figures
from bench.machine import about
from capo_fast.config import load_config
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.loaders import start_engine
from capo_fast.pretrained import load_tokenizer
from capo_fast.runtime.ranks import ranks
from capo_fast.tiny.task import oracle_critique

SEEDS = tuple(range(FIRST_REPORTED, FIRST_REPORTED + 16))


def run_path(out: Path, arm: str, seed: int) -> Path:
    return out / "runs" / f"{arm}-{seed}.json"


def run_config(arm: str, seed: int, plan: Plan, runs: Path) -> Config:
    """The configuration of one run."""
    words = {**plan.settings(runs / arm / str(seed), seed), **ARMS[arm].settings}
    return load_config([f"--{key}={value}" for key, value in words.items()])


def run_missing(arms: Sequence[str], seeds: Sequence[int], plan: Plan, runs: Path, out: Path) -> None:
    """Run what has no file yet, on one engine."""
    missing = [(arm, seed) for seed in seeds for arm in arms if not run_path(out, arm, seed).exists()]
    if not missing:
        return
    shared = {"plan": vars(plan), "about": about(1)}  # the commit of the imported code, even if HEAD moves later
    with engines(run_config(*missing[0], plan, runs)) as (device, plain, rule):
        for arm, seed in missing:
            config, engine = run_config(arm, seed, plan, runs), rule if ARMS[arm].by_rule else plain
            found = run_seed(config, device, engine, oracle_critique) | shared
            write_run(run_path(out, arm, seed), {"arm": arm, "seed": seed, **found})


@contextmanager
def engines(config: Config) -> Iterator[tuple[torch.device, KeptEngine, OracleCritic]]:
    """The device and one engine in two forms: unchanged, and with the world's rule as the critic."""
    model = resolve_model(config.model.path)
    with ranks() as device, closing(start_engine(model, config)) as engine:
        yield device, KeptEngine(engine), OracleCritic(engine, tiny_oracle(load_tokenizer(model), 0.0))


def write_run(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figures(path, found)
    print(path, found["curve"], file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.credit.learn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(CLOCK), help="(%(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="(100 to 115)")
    parser.add_argument("--steps", type=int, default=Plan().steps, help="(%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/credit"), help="folder of the runs (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/credit"), help="folder (%(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser.parse_args()


def main() -> int:
    options = parse()
    if not options.report:
        run_missing(options.arms, options.seeds, Plan(steps=options.steps), options.runs, options.out)
    print(write_page(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
