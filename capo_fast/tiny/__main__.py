"""`python -m capo_fast.tiny [--out DIR] [--steps N] [--seed S]`: regenerate the embedded default."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from capo_fast.tiny import FOLDER
from capo_fast.tiny.pretrain import STEPS, make


def main() -> None:
    """Write the files to the package's own folder, or to another one."""
    parser = argparse.ArgumentParser(prog="python -m capo_fast.tiny", description=__doc__)
    parser.add_argument("--out", type=lambda text: Path(text).expanduser(), default=FOLDER)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the sums, and so the bytes, depend on the thread count
    make(options.out, options.steps, options.seed)


if __name__ == "__main__":
    main()
