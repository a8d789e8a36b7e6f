"""Time saved by generating during learning, with an engine that only waits and uses no CPU.

    python -m bench.trainer.one_step_off [--rounds 2] [--steps 6] [--latency 0.5] [--json FILE]

The embedded policy learns from the same scripted rollouts in each arm. The policy itself is the critic, so that no
weights are swapped. A batch of rollouts takes `--latency` seconds for any number of rollouts, like the last long
rollouts of a step on a GPU:

    1 rank, in turns        generate, then learn
    2 ranks, in turns       each generates half of the rollouts, which takes as long, and learns half
    1 + 1 ranks, one off    one generates the next step's rollouts while the other learns this step's

Seconds per step are those of the learning ranks; the first two steps are left out. Arms take turns, so that other load
on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import about
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runlog.shown import step_seconds

ARMS = {"1 rank, in turns": (1, 0), "2 ranks, in turns": (2, 0), "1 + 1 ranks, one off": (2, 1)}
"""Number of ranks, and number of ranks with only an engine."""
SETTINGS = {
    **{"critic.mode": "self", "loss.is_mode": "truncate", "rollout.top_p": "1", "rollout.prompts": "16"},
    **{"eval.path": "none", "checkpoint.every": "0", "run.keep_rollouts": "none"},
    "reward.fn": "reward_functions:tiny_answer",
}
RANK = "rank"
"""First argument of an arm's processes."""
TESTS = Path(__file__).parents[2] / "tests"


def rank(latency: float, words: Sequence[str]) -> None:
    """One rank of an arm."""
    from scripted_engine import ScriptedEngine
    from scripted_world import MODEL, answer, score_with

    from capo_fast.config import load_config
    from capo_fast.train import run

    class Waiting(ScriptedEngine):
        """Answers all waiting requests together; after the latency if there are rollouts among them."""

        def step(self):
            if any(request.id.startswith("rollout") for request in self._waiting):
                time.sleep(latency)
            completions = [self._answer(request) for request in self._waiting]
            self._waiting.clear()
            return completions

    run(load_config(words), Waiting(answer, score_with(MODEL)))


def arm(name: str, folder: Path, steps: int, latency: float) -> dict[str, float]:
    """Median seconds per step, by stage and in total."""
    count, engines = ARMS[name]
    words = [f"--{key}={value}" for key, value in SETTINGS.items()]
    words += [f"--train.steps={steps}", f"--engine.ranks={engines}", f"--run.dir={folder}"]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += ["-m", "bench.trainer.one_step_off", RANK, str(latency)]
    paths = [str(TESTS), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *words], check=True, env=env, stdout=subprocess.DEVNULL)
    lines = read_metrics(folder / "metrics.jsonl")[2:]
    stages = {key for line in lines for key in line if key.startswith("time/")}
    found = {key.removeprefix("time/"): median(line.get(key) or 0.0 for line in lines) for key in sorted(stages)}
    return found | {"step": median(map(step_seconds, lines))}


def measure(rounds: int, steps: int, latency: float) -> dict[str, Any]:
    found: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            found.append({each: arm(each, Path(name, f"{number}-{i}"), steps, latency) for i, each in enumerate(ARMS)})
    return {"latency": latency, "steps": steps, "rounds": found, "about": about(1)}


def shown(found: dict[str, Any]) -> str:
    lines = [f"{'':<22} {'step':>7} {'generate':>9} {'learn':>7} {'wait':>7} {'sync':>7}   seconds, median"]
    for name in ARMS:
        stages = ("step", "rollout", "learn", "wait", "sync")
        values = [median(each[name].get(stage, 0.0) for each in found["rounds"]) for stage in stages]
        lines.append("{:<22} {:7.2f} {:9.2f} {:7.2f} {:7.2f} {:7.2f}".format(name, *values))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.steps, arguments.latency)
    print(shown(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    rank(float(sys.argv[2]), sys.argv[3:]) if sys.argv[1:2] == [RANK] else main()
