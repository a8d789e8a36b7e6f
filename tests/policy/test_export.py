"""A trial export before the first step, so that no trained run fails to save its model."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager

import pytest
from huggingface_hub import ModelCard
from learner_ranks import make_learner
from model_folders import copied
from peft import AutoPeftModelForCausalLM
from scripted_world import tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_fast.config.schema import Config, LoraConfig, PolicyConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.checkpoint import CheckpointError
from capo_fast.policy.export import export_model, export_policy, rehearse_export
from capo_fast.policy.model import Policy, load_model

CONFIG = Config(policy=PolicyConfig(dtype="float32"), lora=LoraConfig(rank=4, targets=("q_proj",)))
INVALID = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1}
"""A generation config that transformers reads, and refuses to save."""


@pytest.fixture
def learner(one_rank):
    return make_learner(CONFIG)


def test_a_trial_export_leaves_no_file(learner, tmp_path):
    rehearse_export(learner, tokenizer(), tmp_path, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_generation_config_is_exported_unchanged(learner, tmp_path):
    (folder := copied(tmp_path / "base")).joinpath("generation_config.json").write_text(json.dumps(INVALID))
    learner.policy = Policy(load_model(str(folder), "sdpa"), CONFIG.policy.loss_kernel)
    rehearse_export(learner, tokenizer(), tmp_path, Config())
    export_model(learner, tokenizer(), tmp_path / "model", "float32")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text()) == INVALID


class Unsavable:
    def save_pretrained(self, folder):
        raise ValueError("not\nlike this")


def test_a_model_that_can_not_be_saved_is_refused_before_the_first_step(learner, tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.path: .* could not be saved after training: ValueError: not like"):
        rehearse_export(learner, Unsavable(), tmp_path, CONFIG)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="the model to be exported can't be written"):
        rehearse_export(learner, tokenizer(), tmp_path / "nowhere", CONFIG)


class LogLines(logging.Handler):
    """Collects the log lines that a user would see."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@contextmanager
def no_warning():
    loggers, handler = [logging.getLogger(name) for name in ("transformers", "peft", "huggingface_hub")], LogLines()
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert handler.lines == []


def test_an_export_loads_and_generates_without_a_warning_and_has_its_card(learner, tmp_path):
    export_policy(learner, tokenizer(), tmp_path, CONFIG, {"model": "---\nlicense: mit\n---\n", "adapter": "# It"})
    assert ModelCard.load(tmp_path / "model" / "README.md").data.license == "mit"
    assert (tmp_path / "adapter" / "README.md").read_text() == "# It"
    with no_warning():
        for kind, folder in ((AutoModelForCausalLM, "model"), (AutoPeftModelForCausalLM, "adapter")):
            tokens = AutoTokenizer.from_pretrained(tmp_path / folder)("1+1", return_tensors="pt")
            kind.from_pretrained(tmp_path / folder).generate(**tokens, max_new_tokens=2)
