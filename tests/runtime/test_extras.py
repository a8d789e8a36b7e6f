"""One-line errors that name the packages missing from a plain install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from capo_fast.config.schema import Config
from capo_fast.engine.base import EngineError
from capo_fast.loaders import start_engine


def test_the_trainer_names_the_missing_extra():
    plain_install = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("math_verify", "rich") else find_spec(name)
import capo_fast.train
"""
    done = subprocess.run([sys.executable, "-c", plain_install], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the trainer needs math_verify, rich: make setup, or pip install '.[train]'")


def test_a_missing_vllm_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="vllm is not installed"):
        start_engine("somewhere", Config())
