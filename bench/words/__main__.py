"""The effect of step credit on a real language model, SmolLM2-135M-Instruct, in the world of words (docs/words.md).

    capo fetch smollm2 --out runs/words/smollm2
    python -m bench.words base                          the fine-tuned base; its adapter is kept in bench/results/words
    python -m bench.words run --arm capo --seed 100     one shard: a run and its figures; existing runs are not repeated
    python -m bench.words critics                       critics before and after fine-tuning; not scored twice
    python -m bench.words labels --data-dir DIR         fine-tunes the base on the labels of DIR, for `critics`
    python -m bench.words table                         tables and plot from the existing shards

Seeds 100 to 102 are reported; others are for tuning. --data-dir is a folder with GSM8K and step-labelled data, under
the names of `capo evaluate` and `capo critic-eval`. Without it only the world's own sets are measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.words.arms import ARMS, PLAN
from bench.words.places import Places


def base(places: Places, options: argparse.Namespace) -> None:
    from bench.words.base import make_base  # PEFT takes seconds to import

    make_base(places, options.problems, options.data_dir)


def run(places: Places, options: argparse.Namespace) -> None:
    from bench.words.base import make_data, merge_base
    from bench.words.shards import run_shard

    make_data(places)
    merge_base(places)
    plan = replace(PLAN, steps=options.steps, problems=options.problems)
    run_shard(places, options.arm, options.seed, plan, options.data_dir)


def critics(places: Places, options: argparse.Namespace) -> None:
    from bench.words.base import make_data, merge_base
    from bench.words.critics import score_critics

    make_data(places)
    merge_base(places)
    score_critics(places, options.limit, options.data_dir, dict(options.critic))


def labels(places: Places, options: argparse.Namespace) -> None:
    from bench.words.base import merge_base
    from bench.words.labelled import tune_critic

    merge_base(places)
    tune_critic(places, options.limit, options.data_dir)


def table(places: Places, options: argparse.Namespace) -> None:
    from bench.words.tables import write_tables

    print(write_tables(places))


def named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted NAME=FOLDER")
    return name, Path(folder)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.words", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    places = Places()
    parser.add_argument("--runs", type=Path, default=places.runs, help="folder of large files (%(default)s)")
    parser.add_argument("--results", type=Path, default=places.results, help="folder of results (%(default)s)")
    commands = parser.add_subparsers(required=True)

    def command(work: Callable[..., None]) -> argparse.ArgumentParser:
        found = commands.add_parser(work.__name__)
        found.set_defaults(work=work)
        return found

    evaluated = [command(base), command(run)]
    for each in evaluated:
        each.add_argument("--problems", type=int, default=PLAN.problems, help="problems per set (%(default)s)")
    evaluated[1].add_argument("--arm", choices=ARMS, required=True)
    evaluated[1].add_argument("--seed", type=int, required=True)
    evaluated[1].add_argument("--steps", type=int, default=PLAN.steps, help="(%(default)s)")
    judged, tuned = command(critics), command(labels)
    for each in (judged, tuned):
        each.add_argument("--limit", type=int, default=60, help="scored rows per set (%(default)s)")
    judged.add_argument(
        "--critic", type=named_folder, action="append", default=[], metavar="NAME=FOLDER", help="a further model"
    )
    for each in (*evaluated, judged):
        each.add_argument("--data-dir", type=Path, help="folder of GSM8K and step-labelled data")
    tuned.add_argument("--data-dir", type=Path, required=True, help="folder of step-labelled data")
    command(table)
    return parser


def main() -> int:
    options = parser().parse_args()
    options.work(Places(options.runs, options.results), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
