"""The command `capo sft`, or `torchrun -m capo_fast.sft`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import capo_fast.runtime.extras  # noqa: F401  first: its errors are clearer than those of the imports below
from capo_fast.command import run_training
from capo_fast.config.arguments import load_sft_config
from capo_fast.sft import run


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""
    return run_training(lambda: run(load_sft_config(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    sys.exit(main())
