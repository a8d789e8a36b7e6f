"""Standard output and error of a command: streams whose end doesn't end the command, and text without control codes."""

from __future__ import annotations

import errno
import io
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates of direction
    "\u2028\u2029\ud800-\udfff]"  # line ends of their own, halves of surrogate pairs
)


def printable(text: object) -> str:
    r"""The text with control characters as escapes: whatever a server, a model, data or a path holds, a terminal only
    shows it. Line feeds and tabs stay.

    >>> print(printable("a\x1b[2J\u202eb"))
    a\x1b[2J\u202eb
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def print_line(label: str, text: str) -> None:
    """One line on standard error, as `capo_fast: warning: ...`; ranks other than 0 name themselves."""
    rank = os.environ.get("RANK", "0")
    name = "capo_fast" if rank == "0" else f"capo_fast, rank {rank}"
    print(f"{name}: {label}: {printable(text)}", file=sys.stderr, flush=True)


class OutputLost(Exception):
    """Standard output takes nothing more, and it is what the command is for."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.by_reader = error.errno == errno.EPIPE
        """Whoever read it has read enough, as `head -1`."""


@contextmanager
def standard_streams(goes_on: bool) -> Iterator[None]:
    """For the time of the block neither stream raises where it is closed, broken or full, or lacks a character.

    A closed one is the null device. What is lost of standard output raises OutputLost, or with `goes_on` is said once
    on standard error. Streams that somebody else has put in place stay, as in a test.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or os.fdopen(_null_device())
    sys.stdout, sys.stderr = _stream(1, sys.stdout, sys.__stdout__), _stream(2, sys.stderr, sys.__stderr__)
    try:
        with _losing(sys.stderr, _ignored), _losing(sys.stdout, _said if goes_on else _raised):
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _stream(number: int, stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:
        return _Stream(_null_device(), "utf-8", line_buffering=True)
    if stream is not original:
        return stream
    at_once = number == 2 or stream.isatty() or getattr(stream, "write_through", False)  # the last: `python -u`
    return _Stream(number, stream.encoding, line_buffering=at_once)


def _null_device() -> int:
    """A descriptor of it: that of the closed stream, which is the lowest free one, unless a library has taken it."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    return descriptor


class _Stream(io.TextIOWrapper):
    """A text stream over a descriptor that calls `lost` when the descriptor takes nothing more, and then drops text."""

    lost: Callable[[OSError], None]

    def __init__(self, number: int, encoding: str, line_buffering: bool) -> None:
        descriptor = _Descriptor(number, lambda error: self.lost(error))
        super().__init__(io.BufferedWriter(descriptor), encoding, "backslashreplace", line_buffering=line_buffering)


@contextmanager
def _losing(stream: TextIO, lost: Callable[[OSError], None]) -> Iterator[None]:
    """What one of our streams does in the block when it is lost."""
    if not isinstance(stream, _Stream):
        yield
        return
    before, stream.lost = getattr(stream, "lost", lost), lost
    try:
        yield
    finally:
        stream.flush()
        stream.lost = before


def _ignored(error: OSError) -> None:
    """Of standard error: there is no other place to say it."""


def _said(error: OSError) -> None:
    print_line("warning", f"standard output: {error.strerror}; going on without it")


def _raised(error: OSError) -> None:
    raise OutputLost(error)


class _Descriptor(io.FileIO):
    def __init__(self, number: int, lost: Callable[[OSError], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._lost = lost

    def write(self, data: Any) -> int:
        """All bytes count as written where the descriptor refuses them; it is the null device from then on."""
        try:
            while (count := super().write(data)) is None:  # non-blocking, and full for the moment
                select.select([], [self], [])
            return count
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self._lost(error)
            return memoryview(data).nbytes
