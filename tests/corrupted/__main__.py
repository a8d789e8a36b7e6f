"""Damages every file of a run's folder in every way, one at a time, and checks how the commands react.

    python -m tests.corrupted [--only FILE ...] [--verbose]

A small run on the scripted engine is trained for two steps. In each case a copy of it is damaged, and `capo status`,
`capo report`, `capo evaluate` and `capo train` (for a third step) run on the copy. The outcomes of `train`:

    harmless    completes with the same weights, metrics and rollouts as without the damage
    warned      the same, and a warning names the file
    lost        as warned, but lines of metrics are lost
    refused     a one-line error, exit status 1 or 2, and unchanged checkpoints
    SILENT      completes with another result and no warning
    TRACEBACK   ends in a traceback; marked for the other commands, too

The table has a row per file. Exit status 1 if any outcome is SILENT or TRACEBACK.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the scripted run's modules are

import forked

from capo_fast.markdown import markdown_table
from tests.corrupted.attack import Attack
from tests.corrupted.damages import CASES, DAMAGES


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corrupted", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="FILE", help=", ".join(CASES))
    parser.add_argument("--verbose", action="store_true", help="print what each command printed")
    options = parser.parse_args(argv)
    forked.start_server()
    with tempfile.TemporaryDirectory(prefix="corrupted-") as folder:
        results = Attack(Path(folder), options.verbose).run(options.only)
    rows = [[name, *(results[name].get(way, "") for way in DAMAGES)] for name in options.only]
    print(markdown_table(["file", *DAMAGES], rows, padded=True))
    counts = Counter(cell for row in rows for cell in row[1:] if cell)
    print(", ".join(f"{cell}: {count}" for cell, count in counts.most_common()))
    return int(any(word in cell for cell in counts for word in ("SILENT", "TRACEBACK")))


if __name__ == "__main__":
    sys.exit(main())
