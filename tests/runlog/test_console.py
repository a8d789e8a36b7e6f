"""A run's output: plain lines in a pipe, one live row on a terminal, a table at the end, summary.json."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from fcntl import ioctl
from pathlib import Path

import pytest
from rich.console import Console as Terminal

import capo_fast
from capo_fast.runlog.console import AnswerDisplay, Console, open_console
from capo_fast.runlog.summary import write_summary
from capo_fast.runtime.files import RecordError

ROOT = Path(capo_fast.__file__).parents[1]
STEP = {
    "pass_rate": 0.40625,
    "reward_mean": 0.8,
    "wrong_step_rate": 0.13,
    "tokens_per_s": 1519.6,
    "critic/critiques": 128,
    "critic/abstained": 3,
    "verify/timeouts": 0,
    "loss/ref_kl": math.nan,
    "time/rollout": 4.0,
    "time/learn": 2.0,
}
LINE = (
    "step 3/10 pass_rate=0.406 reward_mean=0.800 wrong_step_rate=0.130 tokens_per_s=1520 critic/abstained=3/128"
    " seconds=6.0 eta=0:42"
)
SUMMARY = {
    "pass@1_before": 0.3,
    "pass@1_after": 0.86,
    "heldout_problems": 400,
    "steps": 16,
    "wall_seconds": 100.0,
    "seconds_by_stage": {"learn": 30.0, "rollout": 45.0},
}
SCRIPT = """
import os, sys, time
from pathlib import Path
from capo_fast.runlog.console import open_console
console = open_console(2)
try:
    for step in (1, 2):
        for stage in ("rollout", "learn"):
            console.stage(stage)
            os.write(2, f"raw line {step} {stage}\\n".encode())
            print("python line", step, stage)
            print("error line", step, stage, file=sys.stderr)
        console.step(step, {"pass_rate": step / 10, "time/rollout": 30.0})
        time.sleep(0.6)
    if len(sys.argv) > 1:
        raise SystemExit(sys.argv[1])
finally:
    console.close()
console.finish({"pass@1_before": 0.3, "pass@1_after": 0.8, "steps": 2, "wall_seconds": 9.0,
                "seconds_by_stage": {}}, Path("runs/x"))
"""


def shown(console: Console) -> str:
    return console._out.file.getvalue()


def lines(total: int = 10, done: int = 0) -> Console:
    return Console(total, done, Terminal(file=io.StringIO(), width=60))


def screen(text: str) -> list[str]:
    """The rows of a wide terminal after `text`. Emulates only the control codes that the live row uses."""
    rows, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[\??[\d;]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif token == "\x1b[2K":
            rows[row] = ""
        elif token == "\x1b[1A":
            row -= 1
        elif token.startswith("\x1b"):
            assert token[-1] in "mhl", f"a control code that moves the cursor: {token!r}"
        else:
            rows[row] = rows[row][:column].ljust(column) + token + rows[row][column + 1 :]
            column += 1
    return rows


def on_terminal(*arguments: str, **environment: str) -> bytes:
    """The output of `SCRIPT` on a real pseudo-terminal of 80 columns."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm", **environment}
    environment.pop("COLUMNS", None)
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    data = b""
    try:
        while piece := os.read(ours, 65536):
            data += piece
    except OSError:  # Linux: EIO after the other side has closed
        pass
    os.close(ours)
    run.wait()
    return data


# ---- lines -----------------------------------------------------------------------------------------------------------


def test_a_step_is_one_plain_line_however_narrow_the_output():
    console = lines()
    console.stage("rollout")
    console.step(3, STEP)
    console.close()
    assert shown(console) == LINE + "\n"


def test_missing_figures_are_not_shown_and_failures_are():
    console = lines()
    console.step(1, {"pass_rate": 0.5, "reward_mean": math.nan, "verify/timeouts": 2, "updates_skipped": 1})
    assert shown(console) == "step 1/10 pass_rate=0.500 verify/timeouts=2 updates_skipped=1 seconds=0.0 eta=0:00\n"


def test_an_evaluation_is_shown_on_its_step():
    console = lines()
    console.step(10, {"eval/pass@1": 0.5124})
    assert "eval/pass@1=0.512" in shown(console)


def test_time_left_follows_the_pace_of_the_last_ten_steps():
    console = lines(total=1000)
    for step in range(1, 31):
        console.step(step, {"time/rollout": 100.0 if step <= 20 else 1.0, "time/learn": None})
    assert shown(console).splitlines()[-1].endswith("eta=16:10")


def test_markup_and_control_characters_in_a_path_are_text(tmp_path):
    folder = tmp_path / "[bold]run\x1b[2J"
    folder.mkdir()
    console = lines()
    console.finish(SUMMARY, folder)
    assert str(folder).replace("\x1b", r"\x1b") in shown(console)


def test_a_pipe_gets_no_control_code_even_if_colour_is_forced():
    environment = {**os.environ, "FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, check=True)
    plain = re.sub(rb"\x1b\[[\d;]*m", b"", run.stdout)
    assert b"\x1b" not in plain
    assert re.findall(rb"^step .*$", plain, re.MULTILINE) == [
        b"step 1/2 pass_rate=0.100 seconds=30.0 eta=0:30",
        b"step 2/2 pass_rate=0.200 seconds=30.0 eta=0:00",
    ]
    assert run.stderr.count(b"error line") == run.stderr.count(b"raw line") == 4


def test_other_ranks_show_nothing(capsys, tmp_path):
    console = open_console(10, rank=1)
    console.stage("rollout")
    console.step(1, STEP)
    console.close()
    console.finish(SUMMARY, tmp_path)
    assert capsys.readouterr() == ("", "")


# ---- the live row ----------------------------------------------------------------------------------------------------


def test_the_row_shows_step_stage_rates_and_time_left():
    console = Console(10, 2, Terminal(file=io.StringIO(), force_terminal=True, width=140), live=True)
    assert "step 3/10 starting 0:00 eta=?" in re.sub(r"\x1b\[[\d;]*m", "", shown(console))
    console.step(3, STEP)
    console.stage("critic")
    console.close()
    row = "step 4/10 critic 0:00 eta=0:42 pass_rate=0.406 reward_mean=0.800 wrong_step_rate=0.130"
    assert row in re.sub(r"\x1b\[[\d;]*m", "", shown(console))
    assert LINE in shown(console)
    assert shown(console).endswith("\x1b[2K")
    assert shown(console).count("\x1b[?25l") == shown(console).count("\x1b[?25h") == 1


def test_the_row_fits_a_narrow_terminal_and_may_be_closed_twice():
    console = Console(10, 2, Terminal(file=io.StringIO(), force_terminal=True, width=30), live=True)
    for step in (3, 4):
        console.stage("rollout")
        console.step(step, {})
    before_close = shown(console)
    console.close()
    console.close()
    assert "\x1b[1A" not in before_close
    assert all(len(row) <= 30 or row.startswith("step ") for row in screen(before_close.replace("\n", "\r\n")))


def test_on_a_real_terminal_foreign_lines_survive_and_the_row_is_removed_at_the_end():
    data = on_terminal()
    rows = screen(data.decode())
    for step in (1, 2):
        for stage in ("rollout", "learn"):
            for kind in ("raw", "python", "error"):
                assert sum(row.endswith(f"{kind} line {step} {stage}") for row in rows) == 1, (kind, step, stage)
    assert [row for row in rows if row.startswith("step ")] == [
        "step 1/2 pass_rate=0.100 seconds=30.0 eta=0:30",
        "step 2/2 pass_rate=0.200 seconds=30.0 eta=0:00",
    ]
    last = rows.index("step 2/2 pass_rate=0.200 seconds=30.0 eta=0:00")
    assert not any("━" in row for row in rows[last + 1 : last + 3])
    assert "step 2/2\x1b[0m\x1b[36m learn 0:00" in data.decode()
    assert any(re.search(r"pass@1 +0\.300 +0\.800", row) for row in rows)
    assert "tensorboard --logdir runs/x/tensorboard" in rows[-2]


def test_a_failed_run_restores_the_terminal():
    data = on_terminal("the run died")
    assert data.rstrip().endswith(b"the run died")
    assert data.count(b"\x1b[?25l") == data.count(b"\x1b[?25h") == 1


def test_a_dumb_terminal_gets_lines():
    data = on_terminal(TERM="dumb")
    assert b"\x1b" not in data
    assert b"step 2/2 pass_rate=0.200 seconds=30.0 eta=0:00\r\n" in data


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_the_table_has_both_rates_the_stages_and_the_paths(tmp_path):
    for name in ("checkpoints/step_000016", "model/shards", "rollouts"):  # no rollouts: fine-tuning
        (tmp_path / name).mkdir(parents=True)
    console = Console(16, 0, Terminal(file=io.StringIO(), width=80))
    console.finish(SUMMARY | {"evaluated": "1 sample, temperature 1, rule verifier"}, tmp_path)
    rows = [" ".join(row.split()) for row in shown(console).splitlines()]
    assert "pass@1 on 400 held-out problems 0.300 +- 0.023 0.860 +- 0.017" in rows
    assert "1 sample, temperature 1, rule verifier" in rows
    stages = ["rollout 45.0 s 45%", "learn 30.0 s 30%", "other 25.0 s 25%"]
    assert [row for row in rows if row.endswith("%")] == stages
    assert "16 steps 1:40" in rows
    assert rows[-4:] == [
        f"run {tmp_path}",
        f"checkpoints {tmp_path}/checkpoints",
        f"model {tmp_path}/model",
        f"TensorBoard tensorboard --logdir {tmp_path}/tensorboard",
    ]


def test_a_given_standard_error_is_shown():
    console = lines()
    console.finish(SUMMARY | {"pass@1_after_stderr": 0.001}, Path("x"))
    assert "0.300 +- 0.023" in shown(console)
    assert "0.860 +- 0.001" in shown(console)


def test_the_rate_of_one_problem_has_no_error(tmp_path):
    console = lines()
    console.finish(SUMMARY | {"heldout_problems": 1, "pass@1_after": 1.0, "pass@1_after_stderr": math.nan}, tmp_path)
    assert " 1.000 " in shown(console) and "nan" not in shown(console)


@pytest.mark.parametrize("wall", [0.0, 3.0])
def test_a_missing_measurement_is_stated(wall):
    console = lines()
    nothing = {"pass@1_before": None, "pass@1_after": None, "steps": 0, "wall_seconds": wall, "seconds_by_stage": {}}
    console.finish(nothing, Path("x"))
    assert "pass@1 was not measured: there is no held-out data (eval.path)" in " ".join(shown(console).split())
    console = lines()
    console.finish(nothing | {"loss_after": None}, Path("x"))
    assert "the held-out loss was not measured: there is no held-out data" in " ".join(shown(console).split())


# ---- summary.json ----------------------------------------------------------------------------------------------------


def test_summary_is_written_whole(tmp_path):
    path = write_summary(tmp_path, SUMMARY | {"pass@1_before": None, "extra": math.nan})
    assert path == tmp_path / "summary.json"
    assert json.loads(path.read_text()) == SUMMARY | {"pass@1_before": None, "extra": None}
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_must_have_its_keys(tmp_path):
    with pytest.raises(ValueError, match="the summary lacks pass@1_after, wall_seconds"):
        write_summary(tmp_path, {key: SUMMARY[key] for key in ("pass@1_before", "steps", "seconds_by_stage")})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_of_a_summary_keeps_the_old_one(tmp_path, monkeypatch):
    write_summary(tmp_path, SUMMARY)

    def refuse(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RecordError, match=r"can't write .*summary\.json: No space left on device"):
        write_summary(tmp_path, SUMMARY | {"steps": 99})
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def test_importing_the_console_loads_no_heavy_library():
    check = textwrap.dedent("""
        import sys, capo_fast.runlog.console
        assert not {"torch", "tensorboard", "wandb"} & set(sys.modules)
    """)
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True).stderr == ""


# ---- answers of an evaluation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "seconds", "lines"), [(0, 1.0, 10), (0, 0.5, 5), (0, 0.0, 1), (1, 1.0, 0)])
def test_answers_are_at_most_ten_lines_without_a_terminal(rank, seconds, lines, capsys, monkeypatch):
    """seconds: of one answer."""
    now = [0.0]
    monkeypatch.setattr("capo_fast.runlog.console.time.monotonic", lambda: now[0])
    with AnswerDisplay("[math]\x1b", 50, rank) as display:
        for _ in range(50):
            now[0] += seconds
            display.advance(3)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(re.findall(r"^\[math\]\\x1b: \d*[05]/50 answers, \d+ tokens/s$", shown.err, re.MULTILINE)) == lines
    assert len(shown.err.splitlines()) == lines
