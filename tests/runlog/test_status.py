"""`capo status`: runs that are training, stopped or finished, and folders that are not runs."""

from __future__ import annotations

import os

import pytest

from capo_fast.config import dump_config, load_config
from capo_fast.policy.manifest import SECTIONS, Manifest, write_json, write_manifest
from capo_fast.runlog.status import main, status
from capo_fast.runtime.files import json_line, lock

NOW = 1_000_000.0


@pytest.fixture
def folder(tmp_path):
    """The folder of a run after two of its 16 steps, with an incomplete checkpoint."""
    (tmp_path / "config.yaml").write_text(dump_config(load_config(["--algorithm", "dapo", "--seed", "5"])))
    (tmp_path / "checkpoints" / ".step_000002.tmp").mkdir(parents=True)
    for step in (0, 1):
        make_checkpoint(tmp_path, step)
    return tmp_path


def make_checkpoint(folder, step):
    (path := folder / "checkpoints" / f"step_{step:06d}").mkdir()
    write_manifest(path, Manifest(step, 1, {role: write_json(path / role, role, 1) for role in SECTIONS}))


def write(folder, lines):
    (folder / "metrics.jsonl").write_bytes(b"".join(map(json_line, lines)))
    os.utime(folder / "metrics.jsonl", (NOW - 75, NOW - 75))


LINES = [
    {"step": 1, "pass_rate": 0.25, "reward_mean": 0.5, "tokens_per_s": 900.0, "eval/pass@1": 0.5, "time/rollout": 2.0},
    {"step": 2, "pass_rate": None, "reward_mean": 1.5, "tokens_per_s": 1000.2, "time/rollout": 3.0, "time/learn": 3.0},
]


def test_a_run_that_trains(folder):
    write(folder, LINES)
    with lock(folder):
        lines = status(folder, NOW).splitlines()
    assert lines == [
        f"{folder}  dapo, seed 5",
        "  state       running: a process has locked the folder",
        "  step        2 of 16, 4.0 s per step, 0:56 left",
        "  last step   reward_mean=1.500 tokens_per_s=1000  (1:15 ago)",
        "  evaluation  pass@1 0.500 after step 1",
        "  checkpoint  checkpoints/step_000001",
    ]


def test_a_run_that_has_stopped_or_ended(folder):
    assert "  step        0 of 16\n  evaluation  none\n" in status(folder, NOW)
    write(folder, LINES)
    stopped = "  step        2 of 16, 4.0 s per step; the same command continues after step 1\n"
    assert stopped in status(folder, NOW), "after the newest checkpoint"
    write(folder, [*LINES, {"step": 16}])
    assert "\n  state       stopped: no process has locked the folder\n  step        16 of 16\n" in status(folder, NOW)
    (folder / "summary.json").write_bytes(json_line({"steps": 12}))
    assert "\n  state       stopped" in status(folder, NOW), "the summary of an end before train.steps was raised"
    (folder / "summary.json").write_bytes(json_line({"steps": 16}))
    assert "\n  state       finished\n" in status(folder, NOW)
    with lock(folder):
        assert "\n  state       running" in status(folder, NOW)


def test_the_newest_checkpoint_is_that_of_the_last_step(folder):
    for step in (999_999, 1_000_000):
        make_checkpoint(folder, step)
    assert status(folder, NOW).endswith("\n  checkpoint  checkpoints/step_1000000")
    (folder / "checkpoints" / "step_1000000" / "model").write_text("")
    assert status(folder, NOW).endswith("/checkpoints/step_1000000/model is damaged: 0 bytes, wanted 1")


def test_status_does_not_change_the_folder(folder):
    write(folder, LINES)
    before = sorted(folder.rglob("*"))
    status(folder, NOW)
    assert sorted(folder.rglob("*")) == before


def test_several_runs_and_an_error_in_one_line(folder, tmp_path_factory, capsys):
    write(folder, LINES)
    other = tmp_path_factory.mktemp("other")
    assert main([str(folder), str(other), str(folder)]) == 1
    output = capsys.readouterr()
    assert output.out.count("dapo, seed 5") == 2
    assert output.err == f"capo_fast: error: {other}: found no config.yaml, wanted the folder of a run\n"
    (folder / "metrics.jsonl").write_text("{\n")
    assert main([str(folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
