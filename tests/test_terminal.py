"""Commands whose standard output or error is closed, broken, full or narrow, or that a signal interrupts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from capo_fast.command import run_command
from capo_fast.errors import CapoError
from capo_fast.terminal import printable

WORK = """
import os, signal, sys
from pathlib import Path
from capo_fast.command import run_command
from capo_fast.errors import CapoError
def work():
    print("\\u2013 line\\n" * int(sys.argv[1]))
    {then}
    sys.stdout.flush()
    Path("done").touch()
sys.exit(run_command(work, output_optional={output_optional}))
"""
PIPE = "capo_fast: warning: standard output: Broken pipe; continuing without it\n"
FULL = "capo_fast: warning: standard output: No space left on device; continuing without it\n"
NO_ROOM = "capo_fast: error: standard output: No space left on device\n"


def command(folder, shell, output_optional=True, then="pass"):
    """Run `shell`, in which `COMMAND N` prints N lines. Returns its exit status, its standard error, and True if
    COMMAND completed."""
    (folder / "work.py").write_text(WORK.format(output_optional=output_optional, then=then))
    line = "set -o pipefail; " + shell.replace("COMMAND", f"{sys.executable} work.py")
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr, (folder / "done").exists()


@pytest.mark.parametrize(
    ("shell", "stderr"),
    [
        ("COMMAND 99999 | head -1", PIPE),
        ("COMMAND 99999 > /dev/full", FULL),
        ("COMMAND 9 >&-", ""),
        ("COMMAND 9 <&- >&- 2>&-", ""),
        ("COMMAND 9 > /dev/full 2> /dev/full", ""),
        ("PYTHONIOENCODING=ascii COMMAND 9", ""),
    ],
)
def test_work_continues_without_a_standard_output(tmp_path, shell, stderr):
    assert command(tmp_path, shell) == (0, stderr, True)


def test_a_command_that_only_prints_ends_with_its_output(tmp_path):
    assert command(tmp_path, "COMMAND 99999 | head -1", output_optional=False) == (141, "", False)
    assert command(tmp_path, "COMMAND 9 > /dev/full", output_optional=False) == (1, NO_ROOM, False)
    assert command(tmp_path, "COMMAND 9 >&-", output_optional=False) == (0, "", True)


def test_an_error_is_printed_without_a_standard_output(tmp_path):
    then = "raise CapoError('no \\x1b[2J such thing')"
    assert command(tmp_path, "COMMAND 99999 | head -1", then=then)[:2] == (
        1,
        PIPE + "capo_fast: error: no \\x1b[2J such thing\n",
    )


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_command_with_one_line(tmp_path, signal):
    then = f"os.kill(os.getpid(), signal.{signal})"
    line = "capo_fast: interrupted: ended by a signal, with nothing to save\n"
    assert command(tmp_path, "COMMAND 9", then=then) == (130, line, False)
    # A shell's background jobs ignore SIGINT.
    assert command(tmp_path, "trap '' INT; COMMAND 9", then=then) == (130, line, False)


def test_only_rank_0_prints_that_all_were_interrupted(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", "1")
    assert run_command(interrupt) == 130
    assert capsys.readouterr().err == ""


TRAIN = """
import os, signal, sys
import capo_fast.train
assert "torch" not in sys.modules  # a signal during its import finds the command ready
def start(config):
    print("step 1 " * 9999, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
capo_fast.train.run = start
sys.exit(capo_fast.train.main([]))
"""


def test_a_run_outlives_its_output_and_is_interrupted_while_it_starts():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", TRAIN], stdout=full, stderr=subprocess.PIPE, text=True)
    line = "capo_fast: interrupted: while the run started; the same command starts it again\n"
    assert (done.returncode, done.stderr) == (130, FULL + line)


def test_a_reward_function_that_prints_also_outlives_the_output(tmp_path):
    (tmp_path / "talkative.py").write_text("def judge(text, answer):\n    print(text, flush=True)\n    return True\n")
    code = (
        "from capo_fast.verify import VerifierPool\n"
        "assert VerifierPool(1, 9.0, 'talkative:judge').submit([('a', 'b')]).result() == [True]"
    )
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", code], stdout=full, cwd=tmp_path, check=True)


def test_control_characters_reach_no_terminal(capsys):
    hostile = "\x1b]0;title\x07 \x9b2J \u202egnp.exe \u2066 \u2028 \ud800 \r"
    shown = r"\x1b]0;title\x07 \x9b2J \u202egnp.exe \u2066 \u2028 \ud800 \r"
    assert printable(f"a\tb\n{hostile}é数") == f"a\tb\n{shown}é数"

    def fail():
        raise CapoError(hostile)

    assert run_command(fail) == 1
    assert capsys.readouterr().err == f"capo_fast: error: {shown}\n"
