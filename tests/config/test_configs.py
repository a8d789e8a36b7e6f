"""Every shipped YAML file loads, and differs from the defaults."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from capo_fast.config import load_config
from capo_fast.config.schema import Config

FILES = sorted(Path(str(resources.files("capo_fast.configs"))).glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads(path):
    assert load_config(["--config", str(path)]) != Config()


def test_no_arguments_load_the_embedded_default():
    assert load_config([]) == load_config(["--config", str(next(path for path in FILES if path.stem == "tiny"))])
