"""Every credit estimator and form of critiques against truth, before any training (docs/credit-bench.md).

    python -m bench.credit [--rollouts 512] [--seed 100]          the tiny world, through vLLM, and forms of critiques
    python -m bench.credit --world words                          the world of words, on the base of bench.words
    python -m bench.credit --model DIR --data-dir DIR             human step labels as well, by a model of your own
    python -m bench.credit --report                               the tables again, of what there is

A shard of a world (128 rollouts of the tiny one, 32 of words), the forms of critiques, or one labelled set, is made in
one go in a few minutes and kept in `--out`; what is there is not made again. Seeds from 100 on are reported; those
below are for tuning.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.credit.formats import make_formats
from bench.credit.given import SETS, make_given
from bench.credit.table import write_table
from bench.credit.world import make_shards
from bench.credit.worlds import TINY, WORDS, WORLDS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.credit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=WORLDS, default="tiny", help="whose rollouts are scored (%(default)s)")
    parser.add_argument("--rollouts", type=int, help=f"of it ({TINY.rollouts}, {WORDS.rollouts} of words)")
    parser.add_argument("--seed", type=int, default=100, help="of prompts, rollouts and questions (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/credit"), help="folder (%(default)s)")
    parser.add_argument("--model", help="folder of the model that reads labelled solutions")
    parser.add_argument("--data-dir", help="folder of labelled solutions")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="labelled sets (%(default)s)")
    parser.add_argument("--limit", type=int, default=24, help="solutions of each labelled set (%(default)s)")
    parser.add_argument("--report", action="store_true", help="make nothing")
    options = parser.parse_args()
    if (options.model is None) != (options.data_dir is None):
        parser.error("--model and --data-dir want each other")
    return options


def main() -> int:
    options = parse()
    if not options.report:
        world = WORLDS[options.world]
        make_shards(world, options.out, options.seed, options.rollouts or world.rollouts)
        if world is TINY:
            make_formats(options.out, options.seed)
        if options.model:
            make_given(options.out, options.sets, options.model, options.data_dir, options.limit, options.seed)
    print(write_table(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
