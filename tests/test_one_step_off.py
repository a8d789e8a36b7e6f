"""Engines on separate ranks: the weights that sample each step's rollouts, and bitwise equal resumed runs."""

from __future__ import annotations

import json

import pytest
import roles_run
from forked import run_ranks
from test_train import metrics_of, rollouts_of, same_run

pytestmark = pytest.mark.usefixtures("fork_server")


def two_roles(folder, fault=()):
    """A run on one learner and one engine rank: the exit statuses of both, and their output."""
    command = [*fault, "--run.dir", str(folder), "--train.steps", "4", "--eval.limit", "4"]
    return run_ranks(roles_run.main, folder.with_suffix(".log"), folder.with_suffix(".notes"), command)


def notes_of(folder):
    """Checksum of the engine's weights by the step of the rollout requests."""
    lines = map(json.loads, folder.with_suffix(".notes").read_text().splitlines())
    return {line["step"]: line["weights_sum"] for line in lines}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    statuses, output = two_roles(folder)
    assert statuses == [0, 0], output
    return folder


@pytest.mark.slow
def test_a_batch_is_sampled_by_the_previous_policy_version(unbroken):
    assert [line["policy_version"] for line in metrics_of(unbroken)] == [0, 0, 1, 2]
    assert {row["policy_version"] for row in rollouts_of(unbroken, 4)} == {2}
    sums = notes_of(unbroken)
    assert list(sums) == [1, 2, 3, 4] and sums[1] == sums[2] and len(set(sums.values())) == 3
    last = metrics_of(unbroken)[-1]
    assert {"time/wait", "time/learn", "engine/rollout_s", "engine/critique_s", "cpu/rollout"} <= last.keys()
    assert "time/rollout" not in last, "the learner spends no time on it"


@pytest.mark.slow
def test_a_run_that_is_stopped_and_fails_during_generation_ends_with_the_same_bits(unbroken, tmp_path):
    folder = tmp_path / "run"
    statuses, output = two_roles(folder, fault=["--die", "rollout:24:SIGTERM"])  # the engine's rank alone, in batch 2
    assert statuses == [130, 130], output
    assert output.count("interrupted: step 1 is saved") == 1

    statuses, output = two_roles(folder, fault=["--fail", "rollout:20"])  # in batch 4: the checkpoint has batch 3
    assert statuses == [1, 1]
    assert [line for line in output.splitlines() if line.startswith("capo_fast")][-2:] == [
        "capo_fast, rank 1: error: the engine ran out of something",
        "capo_fast: error: rank 1 failed; its error is the one to read",
    ]
    assert "Traceback" not in output
    saved = json.loads((folder / "checkpoints" / "step_000002" / "manifest.json").read_text())
    assert "ahead" in {entry["role"] for entry in saved["files"].values()}

    statuses, output = two_roles(folder)
    assert statuses == [0, 0], output
    same_run(unbroken, folder)
    assert notes_of(folder) == notes_of(unbroken)
