"""Every example in a docstring prints the result that the docstring shows."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {"capo_fast": ROOT, "capo_kernels": ROOT / "kernels", "bench": ROOT}


def modules_with_examples() -> list[str]:
    files = [(path, package) for name, package in HOMES.items() for path in (package / name).rglob("*.py")]
    found = [path.relative_to(package).with_suffix("") for path, package in files if ">>> " in path.read_text("utf-8")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in found)


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_examples_are_found_in_every_package() -> None:
    assert {name.split(".")[0] for name in modules_with_examples()} == HOMES.keys()
