"""Every credit estimator and form of critiques against truth, before any training (docs/credit-bench.md).

    python -m bench.credit [--rollouts 512] [--seed 100]          the tiny world, through vLLM, and forms of critiques
    python -m bench.credit --world words                          the world of words, on the base of bench.words
    python -m bench.credit --model DIR --data-dir DIR             human step labels as well, by a model of your own
    python -m bench.credit --report                               the tables again, of what there is
    python -m bench.credit --credit.fn my_credit:by_peers         an estimator of your own; folder runs/credit

A shard of a world (128 rollouts of the tiny one, 32 of words), the forms of critiques, or one labelled set, is made in
one go in a few minutes and kept in `--out`; what is there is not made again. Seeds from 100 on are reported; those
below are for tuning. An estimator of your own has a folder there, whose name ends with a digest of the function's file,
and is compared with few others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.credit.formats import make_formats
from bench.credit.given import SETS, make_given
from bench.credit.table import write_table
from bench.credit.world import make_shards
from bench.credit.worlds import TINY, WORDS, WORLDS, World, with_own
from capo_fast.command import run_command
from capo_fast.loaders import load_credit_function
from capo_fast.runtime.digest import digest

COMMITTED, OWN = Path("bench/results/credit"), Path("runs/credit")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.credit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=WORLDS, default="tiny", help="whose rollouts are scored (%(default)s)")
    parser.add_argument(
        "--rollouts", type=int, help=f"of it, rounded up to whole shards ({TINY.rollouts}, {WORDS.rollouts} of words)"
    )
    parser.add_argument("--seed", type=int, default=100, help="of prompts, rollouts and questions (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"folder ({COMMITTED}, {OWN} of an estimator of your own)")
    parser.add_argument("--credit.fn", dest="fn", help="package.module:function, an estimator of your own")
    parser.add_argument(
        "--credit.process",
        dest="process",
        choices=("steps", "outcome", "none"),
        default="steps",
        help="what the critic writes for it (%(default)s)",
    )
    parser.add_argument("--model", help="folder of the model that reads labelled solutions")
    parser.add_argument("--data-dir", help="folder of labelled solutions")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="labelled sets (%(default)s)")
    parser.add_argument("--limit", type=int, default=24, help="solutions of each labelled set (%(default)s)")
    parser.add_argument("--report", action="store_true", help="make nothing")
    options = parser.parse_args()
    options.out = options.out or (OWN if options.fn else COMMITTED)
    if options.fn and options.model:
        parser.error("--credit.fn is scored in a world, without --model")
    if (options.model is None) != (options.data_dir is None):
        parser.error("--model and --data-dir want each other")
    return options


def main() -> int:
    options = parse()
    worlds: Mapping[str, World] = WORLDS
    if options.fn:
        worlds = {options.world: with_own(WORLDS[options.world], options.fn, options.process)}
        options.out = options.out / own_folder(options.fn, options.process)
    if not options.report:
        make(worlds[options.world], options)
    print(write_table(options.out, worlds))
    return 0


def make(world: World, options: argparse.Namespace) -> None:
    """Everything that is missing."""
    make_shards(world, options.out, options.seed, options.rollouts or world.rollouts)
    if world is TINY:
        make_formats(options.out, options.seed)
    if options.model:
        make_given(options.out, options.sets, options.model, options.data_dir, options.limit, options.seed)


def own_folder(function: str, process: str) -> str:
    """Another one once the function's file has changed. process: as for `with_own`. Raises ConfigError."""
    load_credit_function(TINY.config({"credit.fn": function}, seed=0))
    file: Any = import_module(function.partition(":")[0]).__file__
    return f"{function.replace(':', '.')}-{digest([process, Path(file).read_bytes()])}"


if __name__ == "__main__":
    sys.exit(run_command(main))
