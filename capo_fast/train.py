"""The command `torchrun -m capo_fast.train`, or from Python `capo_fast.train.run(config)`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import capo_fast.runtime.extras  # noqa: F401  before imports whose errors would be less clear
from capo_fast.command import run_training
from capo_fast.config import Config, load_config
from capo_fast.config.arguments import note_embedded

if TYPE_CHECKING:
    from capo_fast.engine.base import Engine


def run(config: Config, engine: Engine | None = None) -> dict[str, Any]:
    """Train as configured. Every rank calls this. Returns the contents of `summary.json`. Raises CapoError.

    engine: an engine to use instead of vLLM.
    """
    from capo_fast.build import build  # imports torch for seconds, during which `main` must handle signals
    from capo_fast.runtime.training import train_on_ranks

    return train_on_ranks(config.train.stage_timeout_s, lambda device: build(config, device, engine), config.engine)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""

    def work() -> None:
        arguments = sys.argv[1:] if argv is None else argv
        config = load_config(arguments)
        note_embedded(arguments, config)
        run(config)

    return run_training(work)


if __name__ == "__main__":
    sys.exit(main())
