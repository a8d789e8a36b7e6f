"""Host memory and time of loading a policy and its reference, by rank, on one or more ranks of this machine.

    python -m bench.trainer.loading --model FOLDER [--ranks 1 2 4] [--base COMMIT] [--work FOLDER] [settings ...]

Each rank imports everything first, and then loads as a training run does: the policy, and the KL's reference if the
settings have one. Memory is the rank's resident set above that after the imports, including mapped files. "peak" is the
maximum during loading, "after" the remainder, "holds" the bytes of the rank's shards. --base also measures the code of
another commit for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import about
from bench.same.runs import REPOSITORY, tree_of, unpack
from capo_fast.markdown import markdown_table

SETTINGS = ("--algorithm=grpo", "--policy.dtype=float32", "--loss.kl_coef=0.01")
HEAD = ["code", "ranks", "rank", "holds, MB", "peak, MB", "after, MB", "s"]


def measure(tree: Path, count: int, words: Sequence[str]) -> list[dict[str, Any]]:
    """Results of each of `count` ranks with the code in a folder."""
    paths = os.pathsep.join([str(tree), str(tree / "kernels")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    script = Path(__file__).with_name("loading_rank.py")
    command = [sys.executable, *torchrun, str(script), *SETTINGS, *words]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(code: str, tree: Path, counts: Sequence[int], words: Sequence[str]) -> list[list[str]]:
    return [
        [code, str(count), str(rank), *(f"{found[key] / 1e6:.0f}" for key in ("holds", "peak", "after")), found["s"]]
        for count in counts
        for rank, found in enumerate(measure(tree, count, words))
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.trainer.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks (default: 1 2 4)")
    parser.add_argument("--base", help="another commit to measure")
    parser.add_argument("--work", type=Path, default=Path("runs/same"), help="folder for its code (default: runs/same)")
    options, settings = parser.parse_known_args(argv)
    words = [f"--model.path={options.model.resolve()}", *settings]
    table = []
    if options.base:
        tree = unpack(tree_of(options.base), options.work.resolve())
        table += rows(options.base[:7], tree, options.ranks, words)
    table += rows("this checkout", REPOSITORY, options.ranks, words)
    print(json.dumps(about(threads=1)), file=sys.stderr)
    print(markdown_table(HEAD, table), end="")


if __name__ == "__main__":
    main()
