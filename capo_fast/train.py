"""The command `torchrun -m capo_fast.train`, or from Python `capo_fast.train.run(config)`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import capo_fast.runtime.extras  # noqa: F401  before the imports that would fail with less to say
from capo_fast.command import run_command
from capo_fast.config import Config, load_config
from capo_fast.errors import Interrupted

if TYPE_CHECKING:
    from capo_fast.engine.base import Engine

START_S = 1800.0
"""Start-up has no deadline of its own; a 7B model may take minutes to be read."""


def run(config: Config, engine: Engine | None = None) -> dict[str, Any]:
    """Train as configured; every rank calls it. Returns what `summary.json` holds. Raises CapoError.

    engine: one to use instead of vLLM.
    """
    from capo_fast.build import build  # with torch this takes seconds, in which a signal must find `run_command` ready
    from capo_fast.runtime.failures import one_error_shown
    from capo_fast.runtime.ranks import die_with_launcher, ranks

    die_with_launcher()
    with ranks(max(2 * config.train.stage_timeout_s, START_S), config.engine) as device:
        trainer = build(config, device, engine)
        try:
            with one_error_shown():  # now: vLLM's shutdown takes a while, and breaks the others' collectives
                return trainer.train()
        finally:
            trainer.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""

    def work() -> None:
        try:
            run(load_config(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt:  # once it has started, the run takes the signals itself
            raise Interrupted("while the run started; the same command starts it again") from None

    return run_command(work, goes_on=True)


if __name__ == "__main__":
    sys.exit(main())
