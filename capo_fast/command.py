"""Runs a command: its exit status, the line of its error, and the signals that end it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from capo_fast.errors import CapoError, Interrupted
from capo_fast.terminal import OutputLost, print_line, standard_streams


def run_command(work: Callable[[], object], output_optional: bool = False) -> int:
    """Exit status of a command: the result of `work()` if it is an int, else 0; after a CapoError the error's status,
    with its line on standard error; after SIGINT or SIGTERM 130.

    output_optional: the command's results are files, so it continues if standard output is closed, broken or full. Else
    it ends: with 141 (as by SIGPIPE) if the reader closed it, with one line and 1 if the disk is full.
    """
    with standard_streams(output_optional=True):
        try:
            with standard_streams(output_optional), interruptible():
                return _status(work)
        except OutputLost as lost:
            return BY_READER if lost.by_reader else _shown(CapoError(str(lost)))


def run_training(work: Callable[[], object]) -> int:
    """`run_command` for a run that saves its work when it is interrupted; before it has started there is none."""

    def started() -> None:
        try:
            work()
        except KeyboardInterrupt:  # after its start the run handles the signals itself
            raise Interrupted("while the run started; the same command starts it again") from None

    return run_command(started, output_optional=True)


BY_READER = 128 + signal.SIGPIPE


def _status(work: Callable[[], object]) -> int:
    try:
        result = work()
    except CapoError as error:
        return _shown(error)
    except KeyboardInterrupt:
        return _shown(Interrupted("ended by a signal, with nothing to save"))
    return result if isinstance(result, int) else 0


def _shown(error: CapoError) -> int:
    """Print an error's line and return its status. All ranks are interrupted together, so only rank 0 prints that."""
    if not error.quiet and (os.environ.get("RANK", "0") == "0" or not isinstance(error, Interrupted)):
        print_line(error.label, str(error))
    return error.exit_status


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, like Ctrl-C; a second signal ends the process at once.

    Handlers other than the system's and Python's are kept.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}
    usual = {number: handler for number, handler in before.items() if handler in USUAL}
    for number in usual:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
            asked_to_stop.clear()


USUAL = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
"""SIG_IGN: a shell's background jobs start with SIGINT ignored, but a training run must save on it."""


asked_to_stop = threading.Event()
"""Set if a signal came in `interruptible`, even if a library has caught its KeyboardInterrupt."""


def _interrupt(number: int, frame: object) -> None:
    asked_to_stop.set()
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt
