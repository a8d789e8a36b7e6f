"""Resuming a run's folder: after damage, with moved and changed inputs, with other settings."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
from safetensors.torch import load_file
from scripted_world import scripted_config, scripted_engine, small_arguments

from capo_fast.config.paths import resolve_path
from capo_fast.errors import ConfigError
from capo_fast.train import main, run

SHORT = ("--algorithm", "grpo", "--checkpoint.every", "1", "--eval.limit", "4")


def train(folder, *arguments):
    run(scripted_config("--run.dir", str(folder), *SHORT, *arguments), scripted_engine())


def fails(folder, *arguments):
    return main(small_arguments("--run.dir", str(folder), *SHORT, *arguments))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_steps") / "run"
    train(folder, "--train.steps", "2")
    return folder


@pytest.fixture
def copied(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_working_directory_is_not_renamed(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").touch()
    monkeypatch.chdir(tmp_path)
    assert fails(".", "--resume", "never") == 2
    assert "run.dir: found the working directory with resume: never, wanted another" in capsys.readouterr().err
    assert (tmp_path / "mine").exists()


def test_a_damaged_checkpoint_is_named_and_the_previous_one_gives_the_same_bits(two_steps, copied, capsys):
    flip(copied / "checkpoints" / "step_000002" / "optimizer-00000.safetensors")
    train(copied, "--train.steps", "2")
    [line] = capsys.readouterr().err.splitlines()
    assert "step_000002/optimizer-00000.safetensors is damaged: digest " in line
    assert line.endswith("; it is now step_000002.damaged, and step_000001 is resumed")
    assert {path.name for path in (copied / "checkpoints").iterdir()} > {"step_000002", "step_000002.damaged"}
    for file in ("checkpoints/step_000002/optimizer-00000.safetensors", "model/model.safetensors"):
        ours, theirs = load_file(copied / file), load_file(two_steps / file)
        assert all(ours[name].equal(theirs[name]) for name in ours | theirs)
    assert (copied / "model/README.md").read_bytes() == (two_steps / "model/README.md").read_bytes()


def test_without_an_intact_checkpoint_a_run_is_left_unchanged(copied, capsys):
    for checkpoint in (copied / "checkpoints").iterdir():
        flip(checkpoint / "progress.json")
    before = files_of(copied)
    assert fails(copied, "--train.steps", "3") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "step_000002/progress.json is damaged: digest " in line and " checkpoints in " in line
    assert files_of(copied) == before
    shutil.rmtree(copied / "checkpoints")
    assert fails(copied, "--train.steps", "3") == 1
    assert "metrics up to step 2 and no checkpoint to resume from" in capsys.readouterr().err


def test_data_may_move_but_not_change(copied, tmp_path, capsys):
    data = tmp_path / "problems.jsonl.gz"
    shutil.copy(resolve_path("pkg://capo_fast.tiny/train.jsonl.gz"), data)
    arguments = ("--train.steps", "2", "--data.path", str(data))
    train(copied, *arguments)
    note = f"capo_fast: note: data.path is {data}, was pkg://capo_fast.tiny/train.jsonl.gz: the same content\n"
    printed = capsys.readouterr()
    assert printed.err == note and printed.out.startswith("resumes from checkpoints/step_000002\n")
    rows = gzip.decompress(data.read_bytes()).splitlines(keepends=True)
    data.write_bytes(gzip.compress(b"".join(reversed(rows))))
    assert fails(copied, *arguments) == 2
    assert f"error: data.path: {data} has changed since the run in {copied} was started" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="has changed") as kept:  # by a notebook, with the frames of the failed start
        train(copied, *arguments)
    train(copied, "--train.steps", "2")
    assert kept.tb, "the failed start has unlocked the folder"


def test_changed_records_and_a_longer_schedule_are_reported(tmp_path, capsys):
    train(tmp_path / "run", "--train.schedule", "cosine", "--train.steps", "1")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"rollouts": 16', '"rollouts": 15'))
    (tmp_path / "run" / "rollouts" / "000001.jsonl.gz").unlink()
    train(tmp_path / "run", "--train.schedule", "cosine", "--train.steps", "2")
    assert [line.rpartition("/")[2] for line in capsys.readouterr().err.splitlines()] == [
        "metrics.jsonl: the first 1 lines have changed since step_000001 was saved; training continues",
        "rollouts: 000001.jsonl.gz: deleted or resized since step_000001 was saved; training continues",
        "capo_fast: note: train.steps is 2, was 1: the cosine schedule is computed over all of them again; "
        "the learning rate of step 2 is 0.0001",
    ]
    assert [json.loads(line)["lr"] for line in metrics.read_text().splitlines()] == [2e-4, 1e-4]
