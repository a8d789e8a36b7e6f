"""The files of a run: whole lines, whole files and one line per step, whatever happens to the process."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
import types
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import capo_fast
from capo_fast.errors import ConfigError
from capo_fast.records import CreditedSample, Critique, Prompt, Rollout, Sample, StepSpans
from capo_fast.runlog.recorder import (
    Recorder,
    RunFolder,
    packed_rows,
    read_metrics,
    rollout_files,
    rollout_row,
)
from capo_fast.runtime.files import RecordError, finite, json_line, replacing

ROOT = Path(capo_fast.__file__).parents[1]


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A real process that runs `script` with `folder` set to its first argument."""
    head = """
import os, sys, time
from pathlib import Path
from capo_fast.runtime.files import *
from capo_fast.runlog.recorder import *
folder = Path(sys.argv[1])
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl")]


def rollouts_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "rollouts").iterdir())


def read_rows(path: Path) -> list[dict]:
    with gzip.open(path) as file:
        return [json.loads(line) for line in file]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def filled(folder: Path, steps: int = 5, **options: object) -> RunFolder:
    recorder = RunFolder(folder, **options)
    for step in range(1, steps + 1):
        recorder.record(step, {"pass_rate": step / 10, "time/rollout": 1.5})
        recorder.write_rollouts(step, [packed_rows({"step": step, "sample": sample} for sample in range(3))])
    return recorder


# ---- metrics.jsonl ---------------------------------------------------------------------------------------------------


def test_one_line_per_step_with_null_for_missing_and_non_finite_values(tmp_path):
    recorder = RunFolder(tmp_path / "deep" / "run")
    recorder.record(3, {"a": 0.5, "n": 7, "unused": math.nan, "inf": math.inf, "none": None})
    text = (tmp_path / "deep" / "run" / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "a": 0.5, "n": 7, "unused": null, "inf": null, "none": null}\n'


def test_a_line_is_on_disk_when_record_returns(tmp_path):
    run = child(
        """
        recorder = RunFolder(folder)
        recorder.record(1, {"x": 1.0})
        os.kill(os.getpid(), 9)
        """,
        tmp_path,
    )
    assert run.wait() == -signal.SIGKILL
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "x": 1.0}]
    assert scalars(tmp_path, "x") == [(1, 1.0)]


numbers = st.none() | st.integers(-(2**53), 2**53) | st.floats(width=64)
keys = st.text(min_size=1, max_size=20).filter(lambda key: key != "step")


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.dictionaries(keys, numbers, max_size=4), max_size=5))
def test_recorded_metrics_are_read_back(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("run")
    recorder = RunFolder(folder)
    for step, metrics in enumerate(steps):
        recorder.record(step, metrics)
    lines = read_metrics(folder / "metrics.jsonl")
    expected = [{"step": n, **{key: finite(value) for key, value in m.items()}} for n, m in enumerate(steps)]
    assert lines == expected
    recorder.cut_back(1)
    assert read_metrics(folder / "metrics.jsonl") == expected[:2]


def test_a_step_can_not_have_two_lines(tmp_path):
    recorder = filled(tmp_path, 3)
    with pytest.raises(ValueError, match="step 3 after step 3"):
        recorder.record(3, {})
    with pytest.raises(ValueError, match="step 2 after step 3"):
        RunFolder(tmp_path).record(2, {})
    assert steps_of(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("keep_bytes", [1, 10, -1])
def test_an_incomplete_last_line_is_ignored_and_cut_when_the_folder_is_opened(tmp_path, keep_bytes):
    filled(tmp_path, 2)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + json_line({"step": 3, "pass_rate": 0.123456789})[:keep_bytes])
    assert steps_of(tmp_path) == [1, 2]
    recorder = RunFolder(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    recorder.record(3, {})
    assert steps_of(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step"', ", is not JSON"),
        ("[" * 9999, ", is not JSON"),
        ("[1]", r": found \[1\], wanted an object with a step"),
        ('{"a": 1}', r": found {'a': 1}, wanted an object with a step"),
        ('{"step": -5}', r": found {'step': -5}, wanted an object with a step"),
        ('{"step": 2, "lr": "fast"}', ": lr: found 'fast', wanted a number"),
        ('{"step": 2, "lr": NaN}', ": lr: found nan, wanted a number"),
        ('{"step": 1}', ": found step 1 after step 1"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line, message):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RecordError, match=rf"metrics\.jsonl, line 2{message}"):
        RunFolder(tmp_path)


def test_files_with_other_names_are_not_rollouts(tmp_path):
    recorder = RunFolder(tmp_path)
    for name in (
        "000001.jsonl.gz",
        "000002.jsonl.gz",
        "1 (copy).jsonl.gz",
        "0000003.jsonl.gz",
        "\u0663\u0663\u0663\u0663\u0663\u0663.jsonl.gz",
    ):
        (tmp_path / "rollouts" / name).touch()
    assert list(rollout_files(tmp_path)) == [1, 2]
    recorder.cut_back(0)
    assert len(rollouts_of(tmp_path)) == 3


# ---- rollouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "left"),
    [("all", [1, 2, 3, 4, 5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5]), (0, []), ("none", [])],
)
def test_retention(tmp_path, keep, left):
    filled(tmp_path, 5, keep_rollouts=keep)
    assert rollouts_of(tmp_path) == [f"{step:06d}.jsonl.gz" for step in left]


def test_rollouts_round_trip_and_the_same_rows_are_the_same_bytes(tmp_path, monkeypatch):
    rows = [{"text": "a\n\nb é \ud800", "token_ids": [1, 2]}, {"text": "", "outcome": None}]
    for name, now in (("a", 1e9), ("b", 2e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        RunFolder(tmp_path / name).write_rollouts(7, [packed_rows(iter(rows))])
    first, second = (tmp_path / name / "rollouts" / "000007.jsonl.gz" for name in "ab")
    assert read_rows(first) == rows
    assert first.read_bytes() == second.read_bytes()


def test_an_error_in_a_row_keeps_the_older_file_and_leaves_no_other(tmp_path):
    recorder = RunFolder(tmp_path)
    recorder.write_rollouts(1, [packed_rows([{"a": 1}])])
    with pytest.raises(ValueError, match="not JSON compliant"):
        recorder.write_rollouts(1, map(packed_rows, [[{"a": 2}], [{"a": math.nan}]]))
    assert rollouts_of(tmp_path) == ["000001.jsonl.gz"]
    assert read_rows(tmp_path / "rollouts" / "000001.jsonl.gz") == [{"a": 1}]


def test_a_kill_in_the_middle_of_a_rollouts_file(tmp_path):
    run = child(
        """
        recorder = RunFolder(folder)
        recorder.write_rollouts(1, [packed_rows([{"a": 1}])])
        def rows():
            for number in range(10**9):
                yield packed_rows([{"noise": os.urandom(64).hex()}])
                if number == 5000:
                    print("half way", flush=True)
                    time.sleep(60)
        recorder.write_rollouts(2, rows())
        """,
        tmp_path,
    )
    assert run.stdout.readline() == "half way\n"
    run.kill()
    run.wait()
    assert rollouts_of(tmp_path) == ["000001.jsonl.gz", "000002.jsonl.gz.tmp"]
    assert (tmp_path / "rollouts" / "000002.jsonl.gz.tmp").stat().st_size > 0
    RunFolder(tmp_path)
    assert rollouts_of(tmp_path) == ["000001.jsonl.gz"]
    assert read_rows(tmp_path / "rollouts" / "000001.jsonl.gz") == [{"a": 1}]


def test_a_kill_at_any_time_leaves_only_whole_lines_and_files(tmp_path):
    script = """
    import torch.utils.tensorboard
    recorder = RunFolder(folder)
    last = read_metrics(recorder.metrics)
    print("ready", flush=True)
    for step in range(last[-1]["step"] + 1 if last else 1, 10**6):
        recorder.record(step, {"x": step * 1.0})
        recorder.write_rollouts(step, [packed_rows({"step": step, "n": n} for n in range(50))])
    """
    for pause in (0.05, 0.13):
        run = child(script, tmp_path)
        assert run.stdout.readline() == "ready\n"
        time.sleep(pause)
        run.kill()
        run.wait()
    RunFolder(tmp_path)
    steps = steps_of(tmp_path)
    assert steps == list(range(1, len(steps) + 1))
    files = [tmp_path / "rollouts" / name for name in rollouts_of(tmp_path)]
    assert len(files) > 2
    for path in files:
        assert read_rows(path) == [{"step": int(path.name[:6]), "n": n} for n in range(50)]
    assert dict(scalars(tmp_path, "x")).items() <= {step: float(step) for step in steps}.items()


def sample() -> Sample:
    prompt = Prompt(id="gsm8k-7", problem="1+1=?", answer="2", solution=None, token_ids=(5, 9))
    spans = StepSpans(starts=(True, False, True), texts=("a=1", "A:1"))
    rollout = Rollout(prompt, 4, 2, 11, (7, 8, 9), (-0.1, -0.2, -0.3), "a=1\n\nA:1", False, spans)
    critiques = (
        Critique(abstained=False, wrong_steps=frozenset({1, 0}), dropped=3, text="[1, 0, 9]", truncated=True),
        Critique(abstained=True, wrong_steps=frozenset(), dropped=0, text="hm"),
    )
    return Sample(rollout, None, critiques, (0.5, 1.0), (None, 0.5))


def test_a_rollout_row_has_everything(tmp_path):
    credited = CreditedSample(sample(), False, 0.25, (0.5, 1.0), (0.0, 1.0, 0.0, 1.0), (1.25, math.nan))
    row = rollout_row(credited)
    assert row == {
        "prompt_id": "gsm8k-7",
        "group": 4,
        "sample": 2,
        "policy_version": 11,
        "problem": "1+1=?",
        "answer": "2",
        "text": "a=1\n\nA:1",
        "steps": ["a=1", "A:1"],
        "extracted": None,
        "outcome": None,
        "rewards": [None, 0.5],
        "reward": 0.25,
        "trained": False,
        "stop_reason": "length",
        "votes": [0.5, 1.0],
        "advantages": [1.25, None],
        "critiques": [
            {"abstained": False, "wrong_steps": [0, 1], "dropped": 3, "text": "[1, 0, 9]"}
            | {"truncated": True, "failed": False},
            {"abstained": True, "wrong_steps": [], "dropped": 0, "text": "hm", "truncated": False, "failed": False},
        ],
        "token_ids": [7, 8, 9],
        "step_starts": [True, False, True],
    }
    RunFolder(tmp_path).write_rollouts(1, [packed_rows([row])])
    assert read_rows(tmp_path / "rollouts" / "000001.jsonl.gz") == [row]
    rollout = replace(credited.rollout, earlier=((9, 1), (10, 1)))
    parts = rollout_row(replace(credited, sample=replace(credited.sample, rollout=rollout)))
    assert parts == row | {"versions": [[9, 1], [10, 1], [11, 1]]}


# ---- cutting back to a checkpoint ------------------------------------------------------------------------------------


def test_after_a_cut_back_every_record_has_one_line_per_step(tmp_path):
    filled(tmp_path, 5)
    recorder = RunFolder(tmp_path)
    recorder.cut_back(3)
    assert steps_of(tmp_path) == [1, 2, 3]
    assert rollouts_of(tmp_path) == [f"{step:06d}.jsonl.gz" for step in (1, 2, 3)]
    for step in (4, 5, 6):
        recorder.record(step, {"pass_rate": 0.5})
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    points = scalars(tmp_path, "pass_rate")
    assert points == [
        (step, pytest.approx(value)) for step, value in enumerate([0.1, 0.2, 0.3, 0.5, 0.5, 0.5], start=1)
    ]


def test_cut_back_twice_in_one_process(tmp_path):
    recorder = filled(tmp_path, 4)
    recorder.cut_back(2)
    recorder.record(3, {"pass_rate": 0.9})
    recorder.cut_back(-1)
    assert steps_of(tmp_path) == rollouts_of(tmp_path) == []
    recorder.record(1, {"pass_rate": 0.7})
    assert steps_of(tmp_path) == [1]
    assert scalars(tmp_path, "pass_rate") == [(1, pytest.approx(0.7))]


def test_cut_back_replaces_the_file_atomically(tmp_path, monkeypatch):
    recorder = filled(tmp_path, 5)

    def killed(*paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        recorder.cut_back(2)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    assert not list(tmp_path.rglob("*.tmp"))


# ---- views -----------------------------------------------------------------------------------------------------------


def test_tensorboard_has_every_finite_number(tmp_path):
    recorder = RunFolder(tmp_path)
    recorder.record(1, {"time/rollout": 2.5, "critic/abstained": 3, "eval/pass@1": 0.25, "loss/ref_kl": math.nan})
    recorder.record(2, {"time/rollout": 3.5, "critic/abstained": 0, "loss/ref_kl": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"time/rollout", "critic/abstained", "eval/pass@1", "loss/ref_kl"}
    assert scalars(tmp_path, "time/rollout") == [(1, 2.5), (2, 3.5)]
    assert scalars(tmp_path, "critic/abstained") == [(1, 3.0), (2, 0.0)]
    assert scalars(tmp_path, "loss/ref_kl") == [(2, 0.5)]


def test_a_missing_wandb_is_a_one_line_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^run\.wandb=proj: the package wandb is not installed.*$") as caught:
        RunFolder(tmp_path, wandb="proj")
    assert "\n" not in str(caught.value)
    RunFolder(tmp_path)


def test_wandb_gets_the_metrics_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    starts, logged, finished = [], [], []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: finished.append(True)
    )
    fake = types.SimpleNamespace(init=lambda **options: starts.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        recorder = RunFolder(tmp_path / "run", wandb="proj", settings={"seed": 3})
        recorder.record(step, {"a": 1.0, "unused": math.nan})
        recorder.close()
    assert logged == [(1, {"a": 1.0}), (2, {"a": 1.0})]
    assert len(finished) == 2
    assert starts[0] == starts[1]
    assert starts[0].items() >= {"project": "proj", "name": "run", "resume": "allow", "config": {"seed": 3}}.items()


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    recorder.record(1, {"a": 1})
    recorder.write_rollouts(1, [b""])
    recorder.cut_back(0)
    recorder.close()
    assert list(tmp_path.iterdir()) == []


# ---- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def file_limit(size: int):
    """Limit files to `size` bytes. As on a full disk, one write is partial and the next one fails (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LINE = json_line({"step": 1, "x": 1.0})


@pytest.mark.parametrize(
    ("write", "limit", "file"),
    [
        (lambda recorder: recorder.record(2, {"long/name/of/a/metric": 1.0}), 30, "metrics.jsonl"),
        (
            lambda recorder: recorder.write_rollouts(2, [packed_rows([{"a": os.urandom(9000).hex()}])]),
            900,
            "000002.jsonl.gz",
        ),
        (
            lambda recorder: recorder.write_rollouts(1, [packed_rows([{"a": os.urandom(9000).hex()}])] * 99),
            9000,
            "000001.jsonl.gz",
        ),
        (lambda recorder: recorder.cut_back(1), len(LINE) - 4, "metrics.jsonl"),
        (lambda recorder: RunFolder(recorder.folder), len(LINE) - 4, "metrics.jsonl"),
    ],
)
def test_a_failed_write_is_a_one_line_error_and_loses_nothing(tmp_path, write, limit, file):
    recorder = RunFolder(tmp_path)
    recorder.record(1, {"x": 1.0})
    recorder.write_rollouts(1, [packed_rows([{"a": 1}])])
    with pytest.raises(RecordError) as caught, file_limit(limit):
        write(recorder)
    message = rf"can't write \S+/{re.escape(file)}: File too large \(\d+\.\d\d GiB free there\)"
    assert re.fullmatch(message, str(caught.value))
    assert (tmp_path / "metrics.jsonl").read_bytes() == LINE
    assert rollouts_of(tmp_path) == ["000001.jsonl.gz"]
    assert read_rows(tmp_path / "rollouts" / "000001.jsonl.gz") == [{"a": 1}]
    assert not list(tmp_path.rglob("*.tmp"))
    RunFolder(tmp_path).record(2, {"x": 2.0})
    assert steps_of(tmp_path) == [1, 2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_tensorboard_file_stops_the_run_and_stays_readable(tmp_path):
    recorder = RunFolder(tmp_path)
    with pytest.raises(RecordError, match=r"can't write \S+/tensorboard: File too large"), file_limit(600):
        for step in range(1, 99):
            recorder.record(step, {"x": 1.0})
    assert len(steps_of(tmp_path)) > 3
    points = scalars(tmp_path, "x")
    assert points == [(step, 1.0) for step in steps_of(tmp_path)[: len(points)]]
    assert len(steps_of(tmp_path)) - len(points) in (1, 2), "the writer's thread fails in one of the last two steps"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device(tmp_path):
    recorder = RunFolder(tmp_path)
    recorder.metrics = tmp_path / "full.jsonl"
    recorder.metrics.symlink_to("/dev/full")
    with pytest.raises(RecordError, match=r"full\.jsonl: No space left on device \(\d+\.\d\d GiB free there\)"):
        recorder.record(1, {})


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"can't write .*/file/run/rollouts: Not a directory"):
        RunFolder(tmp_path / "file" / "run")


def test_a_replaced_file_is_unchanged_until_the_end(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_importing_loads_no_writer():
    check = "assert not {'tensorboard', 'wandb', 'torch', 'rich'} & set(sys.modules), sorted(sys.modules)"
    run = child(check, "unused")
    assert run.communicate() == ("", "")
