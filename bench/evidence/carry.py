"""The effect of `rollout.carry` on learning on the embedded default: GRPO with and without it, paired by seed.

    python -m bench.evidence.carry [--seeds 100 101 ...] [--arms carry ...] [--out bench/results/tiny/carry.json]
    python -m bench.evidence.carry --report      only rewrite the table from the existing runs

One engine runs each arm and seed, one after the other, a minute or two each. A run's figures are added to the JSON file
at once. Existing runs are not repeated, so the command continues after an interruption. Seeds 100 to 107 are reported.

    grpo      the embedded default
    weighted  with loss.is_mode: truncate, which carry requires
    carry     weighted with rollout.carry: true: 4 of 16 groups may stay open, for at most 2 versions
    carry 8   carry with 8 of 16 groups
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.evidence.oracle import KeptEngine
from bench.evidence.report import cell
from bench.machine import about
from capo_fast.build import build
from capo_fast.config import load_config
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.loaders import start_engine
from capo_fast.markdown import markdown_table
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.files import replacing
from capo_fast.runtime.ranks import ranks

WEIGHTED = {"loss.is_mode": "truncate"}
CARRY = WEIGHTED | {"rollout.carry": "true"}
ARMS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "weighted": WEIGHTED,
    "carry": CARRY,
    "carry 8": CARRY | {"rollout.enough": 8},
}
REFERENCE = "weighted"
SEEDS = range(100, 108)
STEPS, EVERY, PROBLEMS = 16, 4, 400
Runs = dict[str, dict[str, dict[str, Any]]]
"""Figures by arm and seed."""


def config_of(arm: str, seed: int, steps: int, folder: str) -> Config:
    settings = {
        "algorithm": "grpo",
        "run.dir": f"{folder}/run",
        "seed": seed,
        "train.steps": steps,
        "eval.every": EVERY,
        "eval.limit": PROBLEMS,
        "checkpoint.every": 0,
        "run.keep_rollouts": "none",
        "reward.timeout_s": 60,  # verdicts must not depend on the load of the machine
    }
    return load_config([f"--{key}={value}" for key, value in (settings | ARMS[arm]).items()])


def run_one(arm: str, seed: int, steps: int, engine: KeptEngine, device: torch.device) -> dict[str, Any]:
    """The figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(config_of(arm, seed, steps, folder), device, engine)
        try:
            trainer.train()
        finally:
            trainer.close()
        lines = read_metrics(Path(folder, "run", "metrics.jsonl"))
        rates = {int(step): rate["rate"] for step, rate in trainer.log.progress.evaluations.items()}
    stages = ("sync", "rollout", "verify", "learn")
    return {
        "curve": sorted(rates.items()),
        "rollouts": sum(line["rollouts"] for line in lines),
        "cpu_s": round(sum(line[f"cpu/{stage}"] for line in lines for stage in stages), 2),
        "wall_s": round(sum(line[f"time/{stage}"] for line in lines for stage in stages), 2),
        "carried": fmean(line.get("rollout/carried", 0) for line in lines),
        "staleness": fmean(line.get("rollout/staleness", 0.0) for line in lines),
        "timeouts": sum(line["verify/timeouts"] for line in lines),
        "is_weight": mean_of("loss/is_weight_mean", lines),
        "about": about(torch.get_num_threads()),
    }


def mean_of(name: str, lines: Sequence[dict[str, Any]]) -> float | None:
    """Mean over the steps that have the metric: a step without any gradient has no loss."""
    found = [line[name] for line in lines if line.get(name) is not None]
    return fmean(found) if found else None


def run_missing(arms: Sequence[str], seeds: Sequence[int], steps: int, out: Path) -> None:
    """Run what is missing in the file, all arms of a seed before the next seed."""
    with ranks() as device:
        engine = None
        for seed, arm in ((seed, arm) for seed in seeds for arm in arms):
            if str(seed) in read_runs(out).get(arm, {}):
                continue
            engine = engine or start_engine(resolve_model("pkg://capo_fast.tiny/model"), config_of(arm, 0, steps, ""))
            found = run_one(arm, seed, steps, KeptEngine(engine), device)
            runs = read_runs(out)
            runs.setdefault(arm, {})[str(seed)] = found
            write_runs(out, runs)
            print(f"{arm}, seed {seed}: {found['curve']}", file=sys.stderr, flush=True)
        if engine is not None:
            engine.close()


def read_runs(out: Path) -> Runs:
    return json.loads(out.read_text()) if out.exists() else {}


def write_runs(out: Path, runs: Runs) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        file.write((json.dumps(runs, indent=1) + "\n").encode())


def area(run: dict[str, Any]) -> float:
    """Mean of pass@1 over the evaluations after the first."""
    return fmean(rate for _, rate in run["curve"][1:])


def table(runs: Runs) -> str:
    """Means ± half of the 95 % interval over seeds; differences are paired by seed."""
    head = ["arm", "seeds", "pass@1, last", "area", f"area, to {REFERENCE}", "staleness", "open rollouts", "CPU s"]
    rows, reference = [], runs.get(REFERENCE, {})
    for arm, found in runs.items():
        each = list(found.values())
        pairs = [area(run) - area(reference[seed]) for seed, run in found.items() if seed in reference]
        change = cell(pairs or [None], sign="+") if arm != REFERENCE else ""
        means = [cell([run[key] for run in each], 2) for key in ("staleness", "carried", "cpu_s")]
        last = cell([run["curve"][-1][1] for run in each])
        rows.append([arm, str(len(each)), last, cell([area(run) for run in each]), change, *means])
    return markdown_table(head, rows, padded=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/tiny/carry.json"))
    parser.add_argument("--report", action="store_true", help="run nothing, write the table of what there is")
    options = parser.parse_args()
    if not options.report:
        run_missing(options.arms, options.seeds, options.steps, options.out)
    text = table(read_runs(options.out))
    options.out.with_suffix(".md").write_text(f"`python -m bench.evidence.carry`\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
