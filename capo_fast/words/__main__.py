"""`python -m capo_fast.words --out DIR`: write a world of word problems."""

from __future__ import annotations

import argparse
from pathlib import Path

from capo_fast.words import files
from capo_fast.words.world import FACTS


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        prog="python -m capo_fast.words",
        description=files.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = files.Sizes()
    parser.add_argument("--out", type=lambda text: Path(text).expanduser(), required=True, help="folder of the files")
    parser.add_argument("--seed", type=int, default=0, help="seed of problems and misconceptions (%(default)s)")
    parser.add_argument("--problems", type=int, default=default.problems, help="rows of train.jsonl (%(default)s)")
    parser.add_argument("--heldout", type=int, default=default.heldout, help="rows of each held-out file (%(default)s)")
    parser.add_argument("--sft", type=int, default=default.sft, help="rows of sft.jsonl (%(default)s)")
    parser.add_argument("--share", type=float, default=FACTS, help="share of misconceived facts (%(default)s)")
    options = parser.parse_args()
    sizes = files.Sizes(options.problems, options.heldout, options.sft)
    files.write_files(options.out, options.seed, sizes, options.share)


if __name__ == "__main__":
    main()
