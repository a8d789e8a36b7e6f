"""Digests of a run's inputs: files that may change, files that may not, and the errors that name them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capo_fast.config import load_config
from capo_fast.errors import ConfigError
from capo_fast.runlog import inputs
from capo_fast.runlog.inputs import check_inputs, input_digests, input_paths

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def config(tmp_path):
    (model := tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "README.md", "original.pth"):
        (model / name).write_text(name)
    (data := tmp_path / "data").mkdir()
    (data / "part.arrow").write_text("rows")
    return load_config(["--model.path", str(model), "--data.path", str(data), "--eval.path", "none"])


def changed(config, path, text):
    """The error of a resume after a file was changed; text None: deleted."""
    before = input_digests(config)
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(ConfigError) as caught:
        check_inputs(before, input_digests(config), config, "runs/x")
    return str(caught.value)


def test_files_that_the_run_does_not_read_may_change(config, tmp_path):
    before = input_digests(config)
    assert list(before) == ["data.path", "model.path", "critic.prompt"]
    assert list(before["model.path"]) == ["config.json", "model.safetensors"]
    (tmp_path / "model" / "README.md").write_text("other")
    (tmp_path / "data" / "cache-1f.arrow").write_text("other")
    check_inputs(before, input_digests(config), config, "runs/x")


def test_a_changed_a_new_and_a_missing_file_are_named(config, tmp_path):
    model = tmp_path / "model"
    rest = "since the run in runs/x was started; put it back, or take another run.dir, or --resume never"
    assert changed(config, model / "config.json", "x") == f"model.path: {model}/config.json has changed {rest}"
    assert changed(config, model / "tokenizer.json", "x") == f"model.path: {model}/tokenizer.json is new {rest}"
    assert changed(config, model / "config.json", None) == f"model.path: {model}/config.json is missing {rest}"
    part = tmp_path / "data" / "part.arrow"
    assert changed(config, part, "swor") == f"data.path: {part} has changed {rest}"


def test_a_swapped_in_critic_is_an_input_and_an_unused_one_is_not(config, tmp_path):
    critic = replace(config, critic=replace(config.critic, path="x"))
    assert input_paths(critic)["critic.path"] == "x"
    grpo = replace(critic, credit=replace(critic.credit, process="none"))
    assert input_paths(grpo).keys() == {"data.path", "model.path"}


def test_data_of_the_hub_is_identified_by_its_rows(config, monkeypatch):
    rows = [{"problem": "1+1", "answer": 2}]
    monkeypatch.setattr(inputs, "read_rows", lambda *where: iter([("row 0", row) for row in rows]))
    config = replace(config, data=replace(config.data, path="somebody/numbers"))
    before = input_digests(config)
    rows[0]["answer"] = 3
    with pytest.raises(ConfigError, match=r"data\.path: somebody/numbers has changed since"):
        check_inputs(before, input_digests(config), config, "runs/x")
