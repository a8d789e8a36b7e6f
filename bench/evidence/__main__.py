"""The effect of step credit on the embedded default: CAPO against its rivals, with ablations, over many seeds.

    python -m bench.evidence [--jobs 2] [--runs runs/evidence] [--out bench/results/tiny]
    python -m bench.evidence --report     only rewrite the tables and the plot from the existing runs
    python -m bench.evidence --smoke      two arms, one seed, two steps, in a separate folder

An arm is a process with one engine, which trains its seeds one after the other. `--jobs` arms run in parallel, each on
one thread. Completed runs are not repeated. Writes `evidence.json`, `evidence.md` and `evidence.png`.

All arms share the embedded default's batch, clip range (0.2, 0.28), token mean, KL of 0 and learning rate, so they
differ in credit and its normalisation. dr_grpo also sets its constant denominator, dapo its dynamic sampling and length
penalty. capo-K has K critiques per rollout by the policy's frozen initial weights (majority of 3 and 5). capo-oracle
has the world's rule as its critic, prefix one critique. The ablations run half of the steps.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from bench.evidence.arms import ARMS, BASE, SMOKE, WORLDS, Plan, arm_seconds, base_folder
from bench.evidence.plot import save_plot
from bench.evidence.report import Figures, as_json, load_results, page
from bench.evidence.runs import make_base, missing_seeds, run_arm

SMOKE_PLAN = Plan(steps=2, prompts=4, every=1, problems=16)


def child(name: str, words: Sequence[str], runs: Path, base: Future[str] | None = None) -> str:
    """Run a child process with its output in a log; returns a line with its duration. Raises RuntimeError."""
    if base is not None:
        base.result()
    log = runs / "logs" / f"{name}.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    with log.open("w") as file:
        command = [sys.executable, "-m", "bench.evidence", "--runs", str(runs), *words]
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{name}: exit status {done.returncode}, see {log}")
    return f"{name}: {(time.perf_counter() - start) / 60:.1f} min"


def run_missing(plan: Plan, seeds: dict[str, int], runs: Path, jobs: int, words: Sequence[str]) -> bool:
    """Run what is missing, bases first and then the longest arms first; returns whether all runs succeeded."""
    left = {name: len(found) for name, count in seeds.items() if (found := missing_seeds(name, count, runs))}
    worlds = [w for w in WORLDS if any(ARMS[name].world == w for name in left) and not base_folder(runs, w).exists()]
    seconds = {name: arm_seconds(name, count, plan) for name, count in left.items()}
    about = (sum(seconds.values()) + BASE * len(worlds)) / jobs / 60
    print(f"{sum(left.values())} runs in {len(left)} arms, about {about:.0f} minutes on {jobs} cores", flush=True)
    (runs / "logs").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        bases = {w: pool.submit(child, f"base-{w}", [*words, "--base", str(w)], runs) for w in worlds}
        arms = [
            pool.submit(child, name, [*words, "--arm", name], runs, bases.get(ARMS[name].world))
            for name in sorted(seconds, key=seconds.__getitem__, reverse=True)
        ]
        futures = [*bases.values(), *arms]
        for number, future in enumerate(as_completed(futures), start=1):
            print(f"{number} of {len(futures)}  {future.exception() or future.result()}", flush=True)
    return not any(future.exception() for future in futures)


def write_report(runs: Path, out: Path, plan: Plan) -> str:
    """Write `evidence.json`, `evidence.md` and `evidence.png`; returns the page."""
    results = load_results(runs)
    text = page(results, plan)
    out.mkdir(parents=True, exist_ok=True)
    (out / "evidence.md").write_text(text)
    (out / "evidence.json").write_text(as_json(results, plan))
    save_plot(results, Figures(plan), out / "evidence.png")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="arms in parallel")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="folder of the results (bench/results/tiny)")
    parser.add_argument("--report", action="store_true", help="run nothing, write the results of the existing runs")
    parser.add_argument("--smoke", action="store_true", help="a test of the whole command, in a minute")
    parser.add_argument("--arm", choices=ARMS, help="run one arm in this process")
    parser.add_argument("--base", type=int, help="pretrain the base of one world in this process")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs: found {options.jobs}, wanted at least 1")
    plan, seeds = Plan(), {name: arm.seeds for name, arm in ARMS.items()}
    if options.smoke:
        plan, seeds = SMOKE_PLAN, dict.fromkeys(SMOKE, 1)
    runs = options.runs
    if options.base is not None:
        make_base(options.base, runs)
        return 0
    if options.arm:
        run_arm(options.arm, missing_seeds(options.arm, seeds[options.arm], runs), plan, runs)
        return 0
    if options.smoke:
        runs = runs.with_name(f"{runs.name}-smoke")
    out = options.out or (runs if options.smoke else Path("bench/results/tiny"))
    done = options.report or run_missing(plan, seeds, runs, options.jobs, ["--smoke"] * options.smoke)
    print(write_report(runs, out, plan))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
