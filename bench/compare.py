"""CAPO and GRPO on the embedded default, at equal rollouts, over several seeds.

    .venv/bin/python bench/compare.py [--seeds 3] [--out bench/results/tiny] [--runs runs/compare]

Each arm is one `capo_fast.train` process; an arm that has finished is not run again. Writes `compare.json` and
`compare.md` with the mean and the standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev

ALGORITHMS = ("capo", "grpo")
EVERY = 4


def run_arm(algorithm: str, seed: int, runs: Path) -> dict[str, float]:
    """pass@1 by step, and the seconds of the training stages (evaluation and start-up left out)."""
    folder = runs / f"{algorithm}-{seed}"
    settings = {"run.dir": folder, "algorithm": algorithm, "seed": seed, "eval.every": EVERY}
    flags = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    if not (folder / "summary.json").exists():
        subprocess.run([sys.executable, "-m", "capo_fast.train", *flags], check=True)
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {"pass@1 at step 0": summary["pass@1_before"]}
    found |= {f"pass@1 at step {line['step']}": line["eval/pass@1"] for line in lines if "eval/pass@1" in line}
    stages = summary["seconds_by_stage"]
    found["training seconds"] = sum(
        stages.get(stage, 0.0) for stage in ("sync", "rollout", "critique", "verify", "learn")
    )
    return found


def table(results: dict[str, list[dict[str, float]]]) -> str:
    rows = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for key in next(iter(results.values()))[0]:
        cells = [[arm[key] for arm in arms] for arms in results.values()]
        rows.append(f"| {key} | " + " | ".join(f"{fmean(c):.3f} ± {stdev(c):.3f}" for c in cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--out", type=Path, default=Path("bench/results/tiny"))
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds: a spread needs at least 2")
    seeds = range(arguments.seeds)
    results = {name: [run_arm(name, seed, arguments.runs) for seed in seeds] for name in ALGORITHMS}
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    machine |= {package: version(package) for package in ("torch", "transformers")}
    (arguments.out / "compare.json").write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")
    (arguments.out / "compare.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
