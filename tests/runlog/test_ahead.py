"""The next step's batch in a checkpoint is restored bit for bit."""

from __future__ import annotations

import json
import math

import pytest
import torch

from capo_fast.exchange.columns import Columns
from capo_fast.exchange.figures import figures_of
from capo_fast.policy.checkpoint import Checkpoint
from capo_fast.policy.manifest import DamagedError, Manifest, write_json
from capo_fast.policy.shards import shards_of, write_parts
from capo_fast.records import CreditedSample, Critique, Prompt, Rollout, Sample, StepSpans
from capo_fast.rollout.carry import OpenGroup, Partial
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.stream import Traffic
from capo_fast.runlog.ahead import batch_json, batch_on_first, batch_tensors, read_batch
from capo_fast.runtime.stages import Lap


def credited(group, sample, prompt):
    rollout = Rollout(
        prompt, group, sample, 3, (5, 6 + sample), (-0.1, -1 / 3), "t", True, StepSpans((True, False), ("t",))
    )
    critiques = (Critique(False, frozenset({0, 2}), 1, "x"), Critique.absent(truncated=True))
    judged = Sample(rollout, 1.0 if sample else None, critiques, (math.nan,), (None, 0.5))
    by_token = (1 / 7, -1 / 3) if sample else None
    return CreditedSample(judged, bool(sample), 0.5, (0.25,), (0.1, 0.2, 0.3, math.inf), (1 / 7,), by_token)


def batch():
    prompts = [Prompt("a", "1+1", ("2", "two"), None, (1, 2)), Prompt("b", "2+2", "4", "so", (3,))]
    sampled = [credited(group, sample, prompts[group]) for group in (0, 1) for sample in (0, 1)]
    open_group = OpenGroup(2, 1, 5, (Partial(((1, 2),), 1, False, False, (5, 6), (-0.1, -1 / 3)), Partial()))
    traffic, spent = Traffic(4, 7, busy_seconds=0.5), Lap({"rollout": 1.5}, {"rollout": 2.0})
    figures, columns = list(map(figures_of, sampled)), Columns.of(sampled[2:])
    draws, rows = {0: 7, 1: 4}, [b"the rows", b"", b"of ranks"]
    metrics = ({"rollout/carried": 2.0}, spent, {"credit/tokens": 3.0})
    return Batch(figures, frozenset({1}), draws, columns, rows, traffic, 9, (open_group,), *metrics)


def checkpoint(folder, batch, **changes):
    """A checkpoint of `batch` with changed tensors; None: omitted."""
    tensors = {name: each for name, each in (batch_tensors(batch) | changes).items() if each is not None}
    files = {
        "ahead.json": write_json(folder / "ahead.json", "ahead", batch_json(batch)),
        "ahead.safetensors": write_parts(folder / "ahead.safetensors", "ahead", shards_of(tensors, 0)),
    }
    return Checkpoint(folder, Manifest(5, 1, files))


def test_a_batch_is_restored_unchanged(one_rank, tmp_path):
    saved = batch_on_first(batch())
    found = read_batch(checkpoint(tmp_path, saved))
    assert repr(found) == repr(saved), "compared by repr, as nan is not equal to itself"
    assert found.carried == saved.carried != (), "their repr has no tokens"
    [group] = json.loads((tmp_path / "ahead.json").read_text())["carried"]
    assert not any(rollout["token_ids"] or rollout["logprobs"] for rollout in group["rollouts"])


@pytest.mark.parametrize(
    "change",
    [
        {"logprobs": torch.zeros(3, dtype=torch.float32)},
        {"token_ids": None},
        {"rows": None},
        {"carried.logprobs": None},
    ],
)
def test_inconsistent_tensors_are_damage(change, one_rank, tmp_path):
    with pytest.raises(DamagedError, match=r"ahead.safetensors: [\w.]+: found torch"):
        read_batch(checkpoint(tmp_path, batch(), **change))


def test_a_checkpoint_without_the_section_has_no_batch(tmp_path):
    assert read_batch(Checkpoint(tmp_path, Manifest(5, 1, {}))) is None
