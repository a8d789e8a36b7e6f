"""README and docs: everything that they name exists. test_snippets.py checks their code and commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from project.documents import DOCUMENTS, ROOT, blocks, name_of

from capo_fast.cli import COMMANDS
from capo_fast.config.settings import SETTINGS, schema_of
from capo_fast.config.sft import SftConfig
from docs.pictures import ARMS, learning_curves

SOURCES = {path.relative_to(ROOT).as_posix() for name in ("capo_fast", "bench") for path in (ROOT / name).rglob("*.py")}
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readmes_loss_runs():
    names: dict = {}
    exec(next(blocks(ROOT / "README.md", "python")).text, names)
    assert names["logits"].grad.abs().sum() > 0


def test_the_readmes_curves_are_drawn_from_the_evidence():
    axes = Figure().subplots()
    learning_curves(axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(ARMS.values())


def broken_links(document: Path) -> list[str]:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", text)
    return [link for link in links if "://" not in link and not (document.parent / link).exists()]


@each_document
def test_links_resolve(document):
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "page.md").write_text("[a](page.md#x), [b](gone.md), [c](https://example.org) and `[d](code.md)`")
    assert broken_links(tmp_path / "page.md") == ["gone.md"]


@each_document
def test_settings_exist(document):
    text = document.read_text(encoding="utf-8")
    if document.name == "migrating.md":  # the left column of its tables has another trainer's settings
        text = re.sub(r"^\|[^|]*\|", "", text, flags=re.MULTILINE)
    sections = "|".join({key.partition(".")[0] for key in SETTINGS if "." in key})
    flags = re.findall(r"--([a-z_]+(?:\.\w+)+)", text.replace("--section.key", ""))
    named = re.findall(rf"`((?:{sections})(?:\.(?!(?:py|sh|yaml)\b)\w+)+)[`:]", text)
    assert [key for key in flags + named if key not in SETTINGS | schema_of(SftConfig).settings] == []


@each_document
def test_files_and_modules_exist(document):
    text = document.read_text(encoding="utf-8")
    files = re.findall(r"\b(?:bench|configs|csrc|tests|requirements)/[\w./-]+\.(?:py|sh|yaml|txt)\b", text)
    modules = [name.replace(".", "/") for name in re.findall(r"-m ((?:capo_fast|bench)[\w.]*\w)", text)]
    missing = [name for name in modules if not {f"{name}.py", f"{name}/__main__.py"} & SOURCES]
    assert [name for name in files if "NAME" not in name and not (ROOT / name).exists()] + missing == []


@each_document
def test_commands_exist(document):
    named = re.findall(r"(?:^|`|bin/)capo ([a-z][\w-]*)", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) - COMMANDS.keys() == set()


def test_contributing_names_the_layers_of_the_import_contract():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    layers = "\n".join(tools["importlinter"]["contracts"][0]["layers"])
    assert f"```\n{layers}\n```" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
