"""Kills and other failures in long runs, on two hosts of one rank each: the result must be that of an undisturbed run.

    python -m bench.chaos --kills 25 --seed 0 [--work runs/chaos] [--out bench/results/chaos]
    python -m bench.chaos --cases slow-rank hung-verifier full-disk flipped-bytes

The hosts are two network namespaces of this machine (needs root and Linux). A job is one torchrun per host. It runs the
embedded default at a small size: CAPO with vLLM, 6 steps, a checkpoint every 2 steps.

--kills: SIGKILLs, one after the other. The seed and the kill's number decide the victim (rank, launcher, a whole host,
a verifier worker), the stage and the moment in it. After each kill the job must exit by itself, without a process left.
The other host must print one line that names the rank, and the checkpoints must equal those of the run without kills.
Then the same command is started again. Killing a worker must change nothing. Each completed run is compared with the
run without kills: metrics other than times, rollouts, weights and the last checkpoint byte for byte. No file may be
left in /dev/shm or the temporary folders. A kill takes about 20 s on two cores.

--cases: a rank that is suspended for 15 s, a reward function that never returns for some responses, a disk too full for
a checkpoint, a checkpoint with a flipped bit.

A shard (--seed) whose results are in --out is not repeated. chaos.md in --out is rewritten from all results. Exit
status 1 if any result in --out, of this call or an earlier one, has a fault.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.chaos.cases import CASES
from bench.chaos.hosts import two_hosts
from bench.chaos.kills import Chain, draw
from bench.chaos.runs import Reference
from bench.chaos.table import fault_count, results, tables
from bench.machine import about
from capo_fast.command import run_command


def kills(seed: int, count: int, work: Path) -> dict[str, Any]:
    """Results of one shard."""
    start, outcomes = time.monotonic(), list[dict[str, Any]]()

    def note(outcome: dict[str, Any]) -> None:
        outcomes.append(outcome)
        print(json.dumps(outcome), flush=True)

    with two_hosts() as hosts:
        reference = Reference(hosts, work / "reference")
        chain = Chain(hosts, work / f"kills-{seed}", reference, note)
        chain.run_all([draw(seed, number) for number in range(count)])
    found = {"seed": seed, "kills": outcomes, "runs": chain.runs, "starts": chain.starts, "faults": chain.faults}
    return found | {"seconds": round(time.monotonic() - start)}


def case(name: str, work: Path) -> dict[str, Any]:
    for folder in work.glob(f"{name}*"):
        shutil.rmtree(folder)
    seen, faults = CASES[name](work)
    print(json.dumps({"case": name, "seen": seen, "faults": faults}), flush=True)
    return {"case": name, "seen": seen, "faults": faults}


def write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about(1) | found, indent=1) + "\n")
    (path.parent / "chaos.md").write_text(tables(path.parent))


def work(options: argparse.Namespace) -> int:
    place = options.work.resolve()
    if options.kills and not (path := options.out / f"kills-{options.seed}.json").exists():
        write(path, kills(options.seed, options.kills, place))
    for name in options.cases:
        write(options.out / f"{name}.json", case(name, place))
    print(tables(options.out), end="")
    return 1 if any(map(fault_count, results(options.out))) else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="folder of the runs and their logs")
    parser.add_argument("--out", type=Path, default=Path("bench/results/chaos"))
    return run_command(lambda: work(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
