"""Standard output and error of a command: streams that may break without an error, and text without control codes."""

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
    "[\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 except tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates of direction
    "\u2028\u2029\ud800-\udfff]"  # line ends of their own, halves of surrogate pairs
)


def printable(text: object) -> str:
    r"""The text with control characters escaped, so that text of servers, models, data or paths can't control a
    terminal. Line feeds and tabs are kept.

    >>> print(printable("a\x1b[2J\u202eb"))
    a\x1b[2J\u202eb
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def print_line(label: str, text: str) -> None:
    """Print one line on standard error: `capo_fast: warning: ...`. Ranks other than 0 add their number."""
    rank = os.environ.get("RANK", "0")
    name = "capo_fast" if rank == "0" else f"capo_fast, rank {rank}"
    print(f"{name}: {label}: {printable(text)}", file=sys.stderr, flush=True)


class OutputLost(Exception):
    """Standard output is closed, broken or full, and the command's result is its output."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.by_reader = error.errno == errno.EPIPE
        """Whether the reader closed it, like `head -1`."""


@contextmanager
def standard_streams(output_optional: bool) -> Iterator[None]:
    """In the block neither stream raises if it is closed, broken or full, or can't encode a character.

    A closed stream is replaced by the null device. Lost standard output raises OutputLost or, if `output_optional`,
    prints one warning on standard error. Streams replaced by others, such as a test, are kept.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or os.fdopen(_null_device())
    sys.stdout, sys.stderr = _stream(1, sys.stdout, sys.__stdout__), _stream(2, sys.stderr, sys.__stderr__)
    try:
        with _losing(sys.stderr, _ignored), _losing(sys.stdout, _warned if output_optional else _raised):
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _stream(number: int, stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:
        return _Stream(_null_device(), "utf-8", line_buffering=True)
    if stream is not original:
        return stream
    by_line = number == 2 or stream.isatty() or getattr(stream, "write_through", False)  # the last: `python -u`
    return _Stream(number, stream.encoding, line_buffering=by_line)


def _null_device() -> int:
    """A descriptor of the null device: the closed stream's, which is the lowest free one, unless a library uses it."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    return descriptor


class _Stream(io.TextIOWrapper):
    """A text stream over a descriptor; when the descriptor fails, it calls `lost` and drops all further text."""

    lost: Callable[[OSError], None]

    def __init__(self, number: int, encoding: str, line_buffering: bool) -> None:
        descriptor = _Descriptor(number, lambda error: self.lost(error))
        super().__init__(io.BufferedWriter(descriptor), encoding, "backslashreplace", line_buffering=line_buffering)


@contextmanager
def _losing(stream: TextIO, lost: Callable[[OSError], None]) -> Iterator[None]:
    """Set the callback of one of our streams for the block."""
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
    """For standard error: there is no other stream to report it."""


def _warned(error: OSError) -> None:
    print_line("warning", f"standard output: {error.strerror}; continuing without it")


def _raised(error: OSError) -> None:
    raise OutputLost(error)


class _Descriptor(io.FileIO):
    def __init__(self, number: int, lost: Callable[[OSError], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._lost = lost

    def write(self, data: Any) -> int:
        """After an error all bytes count as written, and the descriptor becomes the null device."""
        try:
            while (count := super().write(data)) is None:  # non-blocking, and currently full
                select.select([], [self], [])
            return count
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self._lost(error)
            return memoryview(data).nbytes
