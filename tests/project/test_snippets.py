"""The documents' snippets are right: Python runs or at least its imports resolve; commands parse with their parsers.

A `python` fence is run; those of one document share a namespace. A `py` fence needs a GPU, a hub, an engine or another
package, and is only compiled. YAML is read as settings.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from project.commands import check, check_in_text, commands
from project.documents import DOCUMENTS, blocks, folder_of_commands, inline_commands, name_of

from capo_fast.config.load import build_config
from capo_fast.errors import CapoError

LANGUAGES = {"", "bash", "python", "py", "yaml", "text", "jinja", "json"}
RUN_ELSEWHERE = {"kernels/README.md"}
"""tests/kernels/test_kernel_contract.py runs these with every implementation."""
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@each_document
def test_fences_have_languages_that_are_checked(document):
    assert {block.language for block in blocks(document)} <= LANGUAGES


@each_document
def test_python_runs(document, monkeypatch):
    monkeypatch.chdir(folder_of_commands(document))
    names: dict = {}
    for block in blocks(document, "python"):
        code = compile(block.text, f"{document}, line {block.line}", "exec")
        if name_of(document) not in RUN_ELSEWHERE:
            exec(code, names)


@each_document
def test_python_that_is_not_run_compiles_and_its_imports_exist(document):
    for block in blocks(document, "py"):
        for module, name in imports(ast.parse(block.text, f"{document}, line {block.line}")):
            assert exists(module, name), f"{name_of(document)}, line {block.line}: {module}: {name}"


def imports(tree):
    """(module, name) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def exists(module, name):
    """True if the module's source text contains the name. Importing it would take seconds for most `py` blocks."""
    spec = find_spec(module)
    return spec is not None and (not name or name in Path(spec.origin).read_text(encoding="utf-8"))


@each_document
def test_commands_parse_with_their_programs(document, monkeypatch):
    monkeypatch.chdir(folder_of_commands(document))
    found = [(check, f"line {block.line}", block.text) for block in blocks(document, "", "bash")]
    found += [(check_in_text, "text", command) for command in inline_commands(document)]
    for read, place, text in found:
        for words in commands(text):
            try:
                read(*words)
            except (CapoError, AssertionError, SystemExit) as error:
                pytest.fail(f"{name_of(document)}, {place}: {' '.join(words)}: {error}")


@each_document
def test_yaml_is_settings(document):
    for block in blocks(document, "yaml"):
        build_config(yaml.safe_load(block.text))


@pytest.mark.parametrize(
    "text",
    [
        "capo train --train.lrr 1",
        "capo evaluate --samples many",
        "capo sft --task critics",
        "make trian",
        "pip install '.[trainer]'",
        "torchrun --nproc=2 -m capo_fast.train --critic.votes 0",
        "python -m bench.chaos --deaths 3",
    ],
)
def test_a_wrong_command_is_found(text):
    [words] = commands(text)
    with pytest.raises((CapoError, AssertionError, SystemExit)):
        check(*words)


@pytest.mark.parametrize(
    "text", ["capo train --train.lrr 1", "capo report --pages 2", "python -m bench.same --bases COMMIT"]
)
def test_an_unknown_flag_in_running_text_is_found(text):
    [words] = commands(text)
    with pytest.raises(AssertionError):
        check_in_text(*words)
