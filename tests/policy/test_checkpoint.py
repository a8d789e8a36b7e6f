"""Checkpoints: everything comes back bit for bit, a torn one is never seen; exports load in transformers."""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_ranks import TRAIN, make_learner, train
from scripted_world import tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_fast.config.schema import Config, LossConfig, PolicyConfig, RolloutConfig
from capo_fast.policy.checkpoint import Checkpointer, CheckpointError
from capo_fast.policy.export import export_model
from capo_fast.policy.model import DTYPES, full_weights

CONFIG = Config(
    policy=PolicyConfig(dtype="float32"),
    loss=LossConfig(kl_coef=0.0),
    train=replace(TRAIN, schedule="cosine"),
    rollout=RolloutConfig(temperature=1.0, max_tokens=64),
)
PROGRESS = {"step": 1, "cursor": 12, "best_step": None}


@pytest.fixture
def learner(one_rank):
    return make_learner(CONFIG)


@pytest.fixture
def saved(learner, tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2)
    checkpointer.save(1, learner, PROGRESS)
    return learner, checkpointer


def state_of(learner):
    weights, optimizer = dict(full_weights(learner.policy, torch.float32)), plain(learner.optimizer.state_dict())
    return copy.deepcopy((weights, optimizer, learner.schedule.state_dict(), learner.bad_in_a_row))


def plain(value):
    """State dicts with their sharded tensors whole."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def same(a, b):
    """True, or an AssertionError that says where they differ."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    return True


def draws():
    return random.gauss(0, 1), np.random.randn(), torch.rand(3).tolist()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_everything_comes_back_bit_for_bit(learner, tmp_path):
    train(learner, CONFIG)
    learner.bad_in_a_row = 2
    draws()  # an odd number of normal draws: the second of each pair is part of the state
    (checkpointer := Checkpointer(tmp_path / "checkpoints", keep=2)).save(1, learner, PROGRESS)
    kept, drawn = state_of(learner), draws()
    train(learner, CONFIG)
    after = state_of(learner)
    other = make_learner(CONFIG)
    assert checkpointer.load(1, other) == PROGRESS
    assert same(kept, state_of(other))
    assert draws() == drawn
    train(other, CONFIG)
    assert same(after, state_of(other))


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(2, None, [3, 4]), (1, None, [4]), (2, 1, [1, 3, 4]), (2, 4, [3, 4]), (9, 0, [0, 1, 2, 3, 4])],
)
def test_the_last_and_the_best_stay(keep, best, left, learner, tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep)
    assert checkpointer.newest() is None
    for step in range(5):
        checkpointer.save(step, learner, {"best_step": best})
    assert names(checkpointer.folder) == [f"step_{step:06d}" for step in left]
    assert checkpointer.newest() == 4


def test_a_torn_checkpoint_never_counts_and_goes_at_the_next_save(saved):
    learner, checkpointer = saved
    shutil.copytree(checkpointer.folder / "step_000001", checkpointer.folder / ".step_000009.tmp")
    assert checkpointer.newest() == 1
    checkpointer.save(2, learner, PROGRESS)
    assert names(checkpointer.folder) == ["step_000001", "step_000002"]


def test_a_step_saved_twice_keeps_the_first(saved):
    learner, checkpointer = saved
    checkpointer.save(1, learner, {"step": 99})
    assert checkpointer.load(1, learner) == PROGRESS


@pytest.mark.parametrize("damage", ["", "{", '{"progress": {}}', "\udcff"])
@pytest.mark.parametrize("file", ["progress.json", "rng_0.json", ".metadata"])
def test_a_damaged_file_is_an_error_that_names_the_folder(file, damage, saved):
    learner, checkpointer = saved
    (checkpointer.folder / "step_000001" / file).write_text(damage, errors="surrogateescape")
    with pytest.raises(CheckpointError, match="step_000001 can't be read: "):
        checkpointer.load(1, learner)


def test_a_save_that_fails_leaves_the_others(saved):
    learner, checkpointer = saved
    (checkpointer.folder / ".step_000002.tmp").write_text("a file, no folder")
    with pytest.raises(CheckpointError, match="step 2 not saved, earlier checkpoints stand"):
        checkpointer.save(2, learner, PROGRESS)
    assert checkpointer.newest() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_export_loads_in_transformers(dtype, learner, tmp_path):
    train(learner, CONFIG)
    for _ in range(2):  # over an older export, too
        export_model(learner, tokenizer(), tmp_path / "model", dtype)
    assert names(tmp_path) == ["model"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype
    assert same(dict(model.state_dict()), dict(full_weights(learner.policy, DTYPES[dtype])))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer().get_vocab()


@pytest.mark.parametrize("in_the_way", ["parent", "parent/model", "parent/.model.tmp"])
def test_an_export_that_can_not_be_written_is_an_error(in_the_way, learner, tmp_path):
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("a file, no folder")
    with pytest.raises(CheckpointError, match="model not written, the checkpoints stand"):
        export_model(learner, tokenizer(), tmp_path / "parent" / "model", "float32")
    assert (tmp_path / in_the_way).read_text() == "a file, no folder"
