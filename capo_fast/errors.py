"""The errors that end a command with one line, and the one handler that prints it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import ClassVar


class CapoError(Exception):
    """Ends a command. The message is one line that names the thing, what was found and what is wanted."""

    exit_status: ClassVar[int] = 1
    label: ClassVar[str] = "error"


class ConfigError(CapoError, ValueError):
    """A setting that can't be used."""

    exit_status = 2


class Interrupted(CapoError):
    """SIGTERM or Ctrl-C ended the command after it had saved its work."""

    exit_status = 130
    label = "interrupted"


def run_command(work: Callable[[], object]) -> int:
    """Exit status of a command: what `work()` returns if that is an int, else 0; after a CapoError that of the error,
    whose line goes to standard error.
    """
    try:
        result = work()
    except CapoError as error:
        print_line(error.label, str(error))
        return error.exit_status
    return result if isinstance(result, int) else 0


def print_line(label: str, text: str) -> None:
    """One line on standard error, as `capo_fast: warning: ...`; ranks other than 0 name themselves."""
    rank = os.environ.get("RANK", "0")
    name = "capo_fast" if rank == "0" else f"capo_fast, rank {rank}"
    print(f"{name}: {label}: {text}", file=sys.stderr, flush=True)
