"""Errors that end a command with one line."""

from __future__ import annotations

import pickle
import traceback
from textwrap import shorten
from typing import ClassVar


class CapoError(Exception):
    """Ends a command. The message is one line that names the thing, what was found and what is wanted."""

    exit_status: int = 1
    label: ClassVar[str] = "error"
    quiet: bool = False
    """Whether another rank prints the line."""


def cause_of(error: BaseException) -> str:
    """The error's type and text as one line of at most 300 characters."""
    return shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")


def portable(error: Exception, where: str) -> Exception:
    """The error for another process: a CapoError itself; of any other a copy with its traceback, which pickling drops,
    as a note. An error that can't be pickled becomes a RuntimeError. where: the process that raised it."""
    if isinstance(error, CapoError):
        return error
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # pickle calls the code of the error's class
        copy = RuntimeError(cause_of(error))
    copy.add_note(f"{where}:\n{''.join(traceback.format_exception(error))}")
    return copy


class ConfigError(CapoError, ValueError):
    """A setting is invalid."""

    exit_status = 2


class Interrupted(CapoError):
    """SIGTERM or Ctrl-C ended the command after it had saved its work."""

    exit_status = 130
    label = "interrupted"
