"""The console command: subcommands, `--nproc`, exit statuses, and ranks that fail, are killed or interrupted."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from capo_fast import cli

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}


def test_help_names_every_command(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "trian: unknown command; wanted train"),
        (["--seed", "1"], f"--seed: unknown command; wanted {', '.join(cli.COMMANDS)}"),
        (["train", "--nproc", "0"], "--nproc: found '0', wanted integer > 0"),
        (["evaluate", "--nproc"], "--nproc: found '', wanted integer > 0"),
        (["train", "--nproc=2", "--train.stepz", "3"], "train.stepz: unknown setting; did you mean train.steps?"),
    ],
)
def test_a_wrong_command_line_is_a_one_line_error(words, line, capsys):
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"capo_fast: error: {line}\n"


def test_the_command_returns_the_subcommand_s_status(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err == f"capo_fast: error: {tmp_path}: found no config.yaml, wanted the folder of a run\n"
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_names_the_command_as_typed(command, capsys):
    with suppress(SystemExit):
        cli.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: capo {command} ")


def test_missing_packages_are_a_one_line_error(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydantic" else found(name))
    monkeypatch.delitem(sys.modules, "capo_fast.runtime.extras", raising=False)
    assert cli.main(["train", "--seed", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("capo_fast: error: the trainer needs pydantic: make setup, or pip install")
    assert error.count("\n") == 1


def test_every_command_has_a_module_with_a_main():
    for module, _ in cli.COMMANDS.values():
        assert callable(cli.import_module(module).main)


def test_help_and_status_start_without_torch(tmp_path):
    code = (
        "import sys, capo_fast.cli as cli\n"
        f"cli.main(['--help']); cli.main(['status', {str(tmp_path)!r}])\n"
        "cli.main(['train', '--nproc', '2', '--x', '1'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, capture_output=True)


def test_the_current_folder_s_modules_can_be_a_reward_on_two_ranks(tmp_path):
    """A console script's sys.path lacks the folder (here: -P). `run.dir` is a file: the run fails after the reward. On
    one rank the example of an own reward runs so."""
    (tmp_path / "my_reward.py").write_text("def f(text, answer): return True\n")
    words = ["train", "--nproc", "2", "--reward.fn", "my_reward:f", "--run.dir", "my_reward.py"]
    code = f"import sys, capo_fast.cli as cli; sys.exit(cli.main({words!r}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "run.dir: " in done.stderr and "my_reward:f" not in done.stderr


def launched(*orders: str) -> subprocess.Popen[str]:
    """A process that launches two ranks per order, with the exit that it requests, and prints their exit statuses."""
    code = (
        "from capo_fast.command import run_command\n"
        "from capo_fast.runtime.launch import launch\n"
        f"for order in {orders!r}:\n"
        "    error = run_command(lambda: print(launch('launched_rank', [order], 2), flush=True))\n"
        "    if error: print('error', error)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_exit_status_is_that_of_the_first_rank_to_fail():
    output, error = launched("0:0", "1:2", "0:1", f"1:{-signal.SIGKILL}", f"0:{-signal.SIGBUS}").communicate()
    assert output.splitlines() == ["0", "2", "1", "error 1", "error 1"]
    first, second = error.splitlines()
    assert first == "capo_fast: error: rank 1 was killed by SIGKILL"
    assert re.fullmatch(r"capo_fast: error: rank 0 was killed by SIGBUS: /dev/shm has \d+ MiB free, .*", second)


def test_a_signal_reaches_every_rank_which_saves_before_the_command_ends(tmp_path):
    process = launched(f"wait:{tmp_path}")
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate()
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert (output, error) == ("error 130\n", "capo_fast: interrupted: all ranks exited after SIGTERM\n")


def test_ranks_that_can_not_be_started_are_a_one_line_error():
    code = (
        "import sys\n"
        "from capo_fast.command import run_command\n"
        "from capo_fast.runtime.launch import launch\n"
        "sys.executable = '/nowhere/python'\n"
        "sys.exit(run_command(lambda: launch('launched_rank', ['0:0'], 2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("capo_fast: error: can't start 2 ranks: ") and "/nowhere/python" in done.stderr
    assert done.stderr.count("\n") == 1
