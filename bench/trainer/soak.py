"""A long run of the embedded default, monitored from outside: memory, canary, leftover files and processes.

    python -m bench.trainer.soak [--steps 200] [--json FILE] [settings ...]

Every step swaps policy and critic in the engine twice and checks both. The resident memory of the training process is
sampled every second, with the number of completed steps. Afterwards no process of its session may be left, and no file
in its temporary folder or in /dev/shm (if nothing else writes there). Exit status 1 if the run failed, something was
left, or memory grew in the second half by more than `--growth` MiB, by a fitted line.

    python -m bench.trainer.soak --pushes 50 [--model FOLDER] [--lora none | adapter | merged] [--seed 0] [--json FILE]

Pushes of weights with planted faults, in this process: see bench/trainer/soak_pushes.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import about

SMALL = {"rollout.prompts": 4, "rollout.n": 4, "eval.limit": 16, "checkpoint.every": 10, "checkpoint.keep": 2}
SHARED = Path("/dev/shm")


def resident_mib(session: int) -> dict[int, float]:
    """Resident MiB of every process of a session, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                pages = int((entry / "statm").read_text().split()[1])
                found[int(entry.name)] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        except (OSError, IndexError):
            continue  # it has exited meanwhile
    return found


def files(temporary: Path) -> set[str]:
    """Names of files in /dev/shm and the temporary folder, without torch's compile cache, which may stay."""
    found = {path.name for folder in (SHARED, temporary) if folder.is_dir() for path in folder.iterdir()}
    return {name for name in found if not name.startswith("torchinductor_")}


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def watch(folder: Path, words: list[str]) -> dict[str, Any]:
    """Run the training; returns its memory by step, and leftover processes and files."""
    temporary = folder.parent / "tmp"
    temporary.mkdir()
    # oneDNN caches a primitive per GEMM shape, 1,024 by default: 100 MB that are not a leak.
    own = {"TMPDIR": str(temporary), "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
    before, environment = files(temporary), os.environ | own
    command = [sys.executable, "-m", "capo_fast.train", "--run.dir", str(folder), *words]
    with (folder.parent / "train.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    curve = []
    while process.poll() is None:
        memory = resident_mib(process.pid)
        if process.pid in memory:
            curve.append((steps_done(folder), round(memory[process.pid], 1), round(sum(memory.values()), 1)))
        time.sleep(1)
    time.sleep(5)  # for processes that exit just after their parent
    return {
        "exit_status": process.returncode,
        "log": (folder.parent / "train.log").read_text()[-2000:] if process.returncode else "",
        "curve": curve,
        "processes_left": len(resident_mib(process.pid)),
        "files_left": sorted(files(temporary) - before),
    }


def growth_mib(curve: list[tuple[int, float, float]]) -> float:
    """Growth of a line fitted to the second half of the steps, without the last step, which has the export.

    >>> round(abs(growth_mib([(step, 100.0 + 50 * (step == 10), 0.0) for step in range(5, 11)])), 6)
    0.0
    """
    last = curve[-1][0]
    points = [(step, memory) for step, memory, _ in curve if last / 2 <= step < last]
    steps, memory = np.array(points).T
    return float(np.polyfit(steps, memory, 1)[0] * (steps[-1] - steps[0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--growth", type=float, default=20.0, help="MiB allowed over the second half")
    parser.add_argument("--pushes", type=int, default=0, help="cycles of pushes with a planted fault, instead of a run")
    parser.add_argument("--model", default="pkg://capo_fast.tiny/model", help="for --pushes")
    parser.add_argument("--lora", choices=["none", "adapter", "merged"], default="none", help="for --pushes")
    parser.add_argument("--seed", type=int, default=0, help="for --pushes")
    parser.add_argument("--json", type=Path)
    options, rest = parser.parse_known_args()
    found, failed = pushes(options) if options.pushes else run(options, rest)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about(int(os.environ.get("OMP_NUM_THREADS", "1"))) | found) + "\n")
    return int(failed)


def pushes(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Results of a soak of pushes, and True if it failed."""
    from bench.trainer.soak_pushes import soak  # imports transformers, which monitoring a run does not need

    found = soak(options.model, options.lora, options.pushes, options.seed)
    print(json.dumps(found))
    return found, bool(found["missed"])


def run(options: argparse.Namespace, rest: list[str]) -> tuple[dict[str, Any], bool]:
    """Results of a monitored run, and True if it failed."""
    words = [f"--{key}={value}" for key, value in (SMALL | {"train.steps": options.steps}).items()]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=".") as name:
        found = watch(Path(name).resolve() / "run", words + rest)
    found |= {"seconds": time.perf_counter() - start, "steps": options.steps, "settings": rest}
    if found["exit_status"] == 0:
        found["growth_mib"] = growth_mib(found["curve"])
    print({key: value for key, value in found.items() if key != "curve"})
    quarter = max(1, len(found["curve"]) // 8)
    print("step, MiB of the trainer, MiB of all:", *found["curve"][::quarter], found["curve"][-1:], sep="\n  ")
    left = found["processes_left"] or found["files_left"]
    return found, found["exit_status"] != 0 or bool(left) or found["growth_mib"] > options.growth


if __name__ == "__main__":
    sys.exit(main())
