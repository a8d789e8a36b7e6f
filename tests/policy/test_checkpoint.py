"""Checkpoints: restored bit for bit; incomplete ones are never loaded. Exports load in transformers."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import resource
import shutil
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from forked import run_ranks
from learner_ranks import TRAIN, make_learner, resave, train
from safetensors.torch import load_file
from scripted_world import MODEL, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_fast.config.schema import Config, LossConfig, PolicyConfig, RolloutConfig
from capo_fast.policy.checkpoint import Checkpointer, CheckpointError
from capo_fast.policy.export import export_model
from capo_fast.policy.learner import lr_factor
from capo_fast.policy.manifest import steps_in
from capo_fast.policy.model import DTYPES, full_weights
from capo_fast.policy.shards import shard_of
from capo_fast.policy.state import Contents, Staging, restore_rng, rng_state

CONFIG = Config(
    policy=PolicyConfig(dtype="float32"),
    loss=LossConfig(kl_coef=0.0),
    train=replace(TRAIN, schedule="cosine"),
    rollout=RolloutConfig(temperature=1.0, max_tokens=64),
)
SECTIONS = {"progress": {"cursor": 12}, "settings": {}, "inputs": {}, "records": {}}


@pytest.fixture
def learner(one_rank):
    return make_learner(CONFIG)


@pytest.fixture
def saved(learner, tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2)
    checkpointer.save(1, learner, SECTIONS)
    return learner, checkpointer


def state_of(learner):
    weights, optimizer = dict(full_weights(learner.policy, torch.float32)), plain(learner.optimizer.state_dict())
    return copy.deepcopy((weights, optimizer, learner.schedule.last_epoch, learner.bad_in_a_row))


def plain(value):
    """A state dict with full tensors in place of sharded ones."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def same(a, b):
    """Returns True, or raises an AssertionError that locates the difference."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    return True


def draws():
    return random.gauss(0, 1), np.random.randn(), torch.rand(3).tolist()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def whole(checkpointer):
    checkpoint, damaged = checkpointer.newest_whole()
    assert damaged == []
    return checkpoint


def test_everything_is_restored_bit_for_bit(learner, tmp_path):
    train(learner, CONFIG)
    learner.bad_in_a_row = 2
    draws()  # an odd number of normal draws, as the second of a pair is part of the state
    (checkpointer := Checkpointer(tmp_path / "checkpoints", keep=2)).save(1, learner, SECTIONS)
    kept, drawn = state_of(learner), draws()
    train(learner, CONFIG)
    after = state_of(learner)
    other = make_learner(CONFIG)
    whole(checkpointer).load(other)
    assert {role: whole(checkpointer).section(role) for role in SECTIONS} == SECTIONS
    assert same(kept, state_of(other))
    assert draws() == drawn
    train(other, CONFIG)
    assert same(after, state_of(other))


@pytest.mark.usefixtures("fork_server")
def test_a_host_with_fewer_gpus_resumes_a_run(monkeypatch):
    gpus = [torch.Generator().manual_seed(gpu) for gpu in range(8)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for module in ("torch.cuda", "torch.cuda.random"):  # the latter has torch's loops over all GPUs
        monkeypatch.setattr(f"{module}.device_count", lambda: len(gpus))
        monkeypatch.setattr(f"{module}.get_rng_state", lambda gpu=1: gpus[gpu].get_state())
        monkeypatch.setattr(f"{module}.set_rng_state", lambda state, gpu=1: gpus[gpu].set_state(state))
    found, drawn = rng_state(), torch.rand(3, generator=gpus[1])
    del gpus[2:]
    restore_rng(found)
    assert torch.rand(3, generator=gpus[1]).equal(drawn)


def test_two_ranks_resume_from_one_and_one_from_two(learner, tmp_path):
    train(learner, CONFIG)
    Checkpointer(tmp_path / "one", keep=1).save(1, learner, SECTIONS)
    statuses, output = run_ranks(resave, tmp_path / "log", CONFIG, tmp_path / "one", tmp_path / "two")
    assert statuses == [0, 0], output
    checkpoint = whole(Checkpointer(tmp_path / "two", keep=1))
    assert checkpoint.manifest.of("model") == ["model-00000.safetensors", "model-00001.safetensors"]
    sizes = [checkpoint.manifest.files[name].size for name in checkpoint.manifest.of("optimizer")]
    assert max(sizes) < 1.1 * min(sizes)
    other = make_learner(CONFIG)
    checkpoint.load(other)
    assert same(state_of(learner), state_of(other))


def test_a_longer_schedule_is_computed_over_all_steps_again(learner, tmp_path):
    (checkpointer := Checkpointer(tmp_path, keep=2)).save(1, learner, SECTIONS)
    for _ in range(2):
        train(learner, CONFIG)
    checkpointer.save(2, learner, SECTIONS)
    longer = make_learner(replace(CONFIG, train=replace(CONFIG.train, steps=8)))
    whole(checkpointer).load(longer)
    rates = [longer.optimizer.param_groups[0]["lr"], train(longer, CONFIG)["lr"], train(longer, CONFIG)["lr"]]
    assert rates == [CONFIG.train.lr * lr_factor(update, "cosine", 0, 8) for update in (2, 2, 3)]


@pytest.mark.parametrize(
    ("keep", "best", "remaining"),
    [(2, None, [3, 4]), (1, None, [4]), (2, 1, [1, 3, 4]), (2, 4, [3, 4]), (9, 0, [0, 1, 2, 3, 4])],
)
def test_the_last_and_the_best_are_kept(keep, best, remaining, learner, tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep)
    assert whole(checkpointer) is None
    for step in range(5):
        checkpointer.save(step, learner, SECTIONS, best)
    assert names(checkpointer.folder) == [f"step_{step:06d}" for step in remaining]
    assert whole(checkpointer).manifest.step == 4


def test_an_incomplete_checkpoint_is_never_loaded_and_is_deleted_at_the_next_save(saved):
    learner, checkpointer = saved
    shutil.copytree(checkpointer.folder / "step_000001", checkpointer.folder / ".step_000009.tmp")
    (checkpointer.folder / ".step_000002.tmp").write_text("a file, no folder")
    assert whole(checkpointer).manifest.step == 1
    checkpointer.save(2, learner, SECTIONS)
    assert names(checkpointer.folder) == ["step_000001", "step_000002"]


def test_a_step_saved_twice_keeps_the_first(saved):
    learner, checkpointer = saved
    checkpointer.save(1, learner, SECTIONS | {"progress": {"cursor": 99}})
    assert whole(checkpointer).section("progress") == SECTIONS["progress"]


def test_a_failed_deletion_is_a_warning_and_the_next_checkpoint_is_saved(saved, monkeypatch, capsys):
    learner, checkpointer = saved
    checkpointer._keep = 1

    def busy(path, *rest):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        for step in (2, 3):
            checkpointer.save(step, learner, SECTIONS)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"capo_fast: warning: {checkpointer.folder}/.step_00000{step}.tmp can't be deleted: Directory not empty; "
        "training continues"
        for step in (1, 2)
    ]
    assert steps_in(checkpointer.folder) == [3]
    checkpointer.save(4, learner, SECTIONS)
    assert names(checkpointer.folder) == ["step_000004"]


@contextmanager
def largest_file(size):
    """Limit files to `size` bytes. As on a full disk, one write is partial and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "file"), [(1_000_000, "model-00000.safetensors"), (2_000_000, "optimizer-00000.safetensors")]
)
def test_a_full_disk_is_named_and_other_checkpoints_remain(size, file, saved):
    learner, checkpointer = saved
    message = (
        rf"step 2 not saved, earlier checkpoints kept: can't write \S+/{file}: File too large \([\d,]+ bytes wanted, "
    )
    with pytest.raises(CheckpointError, match=message), largest_file(size):
        checkpointer.save(2, learner, SECTIONS)
    assert names(checkpointer.folder) == ["step_000001"]
    assert whole(checkpointer).manifest.step == 1


@pytest.fixture
def write_gate(monkeypatch):
    """An event on which all checkpoint writes wait."""
    gate, write = threading.Event(), Contents.write

    def when_set(contents, folder):
        assert gate.wait(60)
        return write(contents, folder)

    monkeypatch.setattr(Contents, "write", when_set)
    yield gate
    gate.set()


def test_a_background_checkpoint_is_of_the_step_that_saved_it(learner, tmp_path, write_gate):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=1, asynchronous=True)
    for step, before in ((1, []), (2, [1])):
        write_gate.clear()
        train(learner, CONFIG)
        kept, progress = state_of(learner), {"cursor": 12}
        checkpointer.save(step, learner, SECTIONS | {"progress": progress})
        progress["cursor"] = 99
        train(learner, CONFIG)
        checkpointer.check()
        assert steps_in(checkpointer.folder) == before, "the new one is not complete, and the previous one is kept"
        write_gate.set()
        checkpointer.wait()
        whole(checkpointer).load(other := make_learner(CONFIG))
        assert same(kept, state_of(other))
        assert whole(checkpointer).section("progress") == {"cursor": 12}
    assert names(checkpointer.folder) == ["step_000002"]


def test_one_checkpoint_is_written_at_a_time(learner, tmp_path, write_gate):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2, asynchronous=True)
    train(learner, CONFIG)
    kept = state_of(learner)
    checkpointer.save(1, learner, SECTIONS)
    train(learner, CONFIG)
    threading.Timer(0.2, write_gate.set).start()
    checkpointer.save(2, learner, SECTIONS)
    checkpointer.wait()
    shutil.rmtree(checkpointer.folder / "step_000002")
    whole(checkpointer).load(other := make_learner(CONFIG))
    assert same(kept, state_of(other))


def test_a_background_write_that_fails_is_an_error_at_the_next_check(learner, tmp_path, write_gate):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2, asynchronous=True)
    checkpointer.save(1, learner, SECTIONS)
    checkpointer.check()
    with largest_file(1_000_000):
        write_gate.set()
        checkpointer._writer._pool.shutdown()
    with pytest.raises(CheckpointError, match=r"step 1 not saved, earlier checkpoints kept: can't write \S+/model-0"):
        checkpointer.check()
    assert names(checkpointer.folder) == []


def test_an_unforeseen_error_of_a_write_names_its_step(learner, tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2, asynchronous=True)
    monkeypatch.setattr(Contents, "write", lambda contents, folder: {}["no such file"])
    checkpointer.save(7, learner, SECTIONS)
    with pytest.raises(KeyError) as failed:
        checkpointer.wait()
    assert failed.value.__notes__ == ["in the writing of the checkpoint of step 7"]


def test_the_host_copy_frees_unused_buffers():
    def copied(*names):
        contents = Contents({name: (name, {"x": shard_of(torch.ones(3))}) for name in names})
        staging.copy(contents)
        return {name: parts["x"].local.data_ptr() for name, (_, parts) in contents.shards.items()}

    staging = Staging()
    before, after = copied("model", "ahead"), copied("model")
    assert after["model"] == before["model"], "its memory is reused"
    assert list(staging._buffers) == [("model", "x")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_export_loads_in_transformers(dtype, learner, tmp_path):
    train(learner, CONFIG)
    for _ in range(2):  # the second export replaces the first
        export_model(learner, tokenizer(), tmp_path / "model", dtype)
    assert names(tmp_path) == ["model"]
    stored = [load_file(f"{folder}/model.safetensors").keys() for folder in (tmp_path / "model", MODEL)]
    assert stored[0] == stored[1], "a tied head is stored once"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype
    assert same(dict(model.state_dict()), dict(full_weights(learner.policy, DTYPES[dtype])))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer().get_vocab()


@pytest.mark.parametrize("in_the_way", ["parent", "parent/model", "parent/.model.tmp"])
def test_an_export_that_can_not_be_written_is_an_error(in_the_way, learner, tmp_path):
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("a file, no folder")
    with pytest.raises(CheckpointError, match="model not written, the checkpoints kept"):
        export_model(learner, tokenizer(), tmp_path / "parent" / "model", "float32")
    assert (tmp_path / in_the_way).read_text() == "a file, no folder"


def test_missing_sections_are_refused(learner, tmp_path):
    with pytest.raises(ValueError, match=r"sections: found \['progress'\], wanted \['inputs', 'progress', "):
        Checkpointer(tmp_path, keep=1).save(1, learner, {"progress": {}})
    assert steps_in(tmp_path) == []
