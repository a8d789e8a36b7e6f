"""Errors that end a command with one line."""

from __future__ import annotations

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


class ConfigError(CapoError, ValueError):
    """A setting is invalid."""

    exit_status = 2


class Interrupted(CapoError):
    """SIGTERM or Ctrl-C ended the command after it had saved its work."""

    exit_status = 130
    label = "interrupted"
