"""`capo report RUN [RUN ...]`: one self-contained HTML file of a run, or of several side by side.

Learning curves, stage times, the critic's health, and the credit map: rollouts coloured by advantage, with the votes
and critiques of every step. It reads the run's files; the run may still be training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import capo_fast.runtime.extras  # noqa: F401  first: its errors are clearer than those of the imports below
from capo_fast.command import run_command
from capo_fast.config.paths import path_argument
from capo_fast.report.credit_map import Room, read_credit_map
from capo_fast.report.html import render
from capo_fast.report.runs import load_runs
from capo_fast.runlog.console import progress
from capo_fast.runtime.files import replacing
from capo_fast.terminal import printable

ROLLOUTS, MEGABYTES = 2000, 10
"""Limits over all runs of a page; its library and curves add about 5 MB."""


def write_report(folders: Sequence[Path], out: Path, seed: int = 0) -> str:
    """Write the page and return a line about it. Raises RecordError."""
    runs = load_runs(folders)
    room = Room(ROLLOUTS // len(runs), MEGABYTES * 1_000_000 // len(runs))
    maps = [read_credit_map(run.rollout_files(), room, seed, progress(f"rollouts of {run.name}")) for run in runs]
    page = render(runs, maps, room, seed).encode()
    with replacing(out) as file:
        file.write(page)
    shown, total = sum(len(found.shown) for found in maps), sum(found.total for found in maps)
    return f"{out}: {len(page) / 1e6:.1f} MB, {shown:,} of {total:,} rollouts in the credit map"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong arguments."""
    parser = argparse.ArgumentParser(prog="capo report", description="One HTML page of one or more runs.")
    parser.add_argument(
        "runs", nargs="+", type=path_argument, metavar="RUN", help="folder of a run; the page begins with the first"
    )
    parser.add_argument(
        "--out", type=path_argument, help="file to write (default: report.html in the first run's folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of rollouts if not all fit (default: 0)")

    def work() -> None:
        options = parser.parse_args(argv)
        out = options.out or options.runs[0] / "report.html"
        print(printable(write_report(options.runs, out, options.seed)))

    return run_command(work, output_optional=True)


if __name__ == "__main__":
    sys.exit(main())
