"""The command `torchrun -m capo_fast.train`, or from Python `capo_fast.train.run(config)`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import capo_fast.runtime.extras  # noqa: F401  before the imports that would fail with less to say
from capo_fast.build import build
from capo_fast.config import Config, load_config
from capo_fast.engine.base import Engine
from capo_fast.errors import run_command
from capo_fast.runtime.failures import one_error_shown
from capo_fast.runtime.ranks import die_with_launcher, ranks

START_S = 1800.0
"""Start-up has no deadline of its own; a 7B model may take minutes to be read."""


def run(config: Config, engine: Engine | None = None) -> dict[str, Any]:
    """Train as configured; every rank calls it. Returns what `summary.json` holds. Raises CapoError.

    engine: one to use instead of vLLM.
    """
    with ranks(max(2 * config.train.stage_timeout_s, START_S)) as device:
        trainer = build(config, device, engine)
        try:
            with one_error_shown():  # now: vLLM's shutdown takes a while, and breaks the others' collectives
                return trainer.train()
        finally:
            trainer.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""
    arguments = sys.argv[1:] if argv is None else argv
    die_with_launcher()
    return run_command(lambda: run(load_config(arguments)))


if __name__ == "__main__":
    sys.exit(main())
