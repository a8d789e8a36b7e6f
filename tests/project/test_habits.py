"""The files at the top of the repository that tools read, such as CITATION.cff and Dockerfile, match the project."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from project.documents import DOCUMENTS, ROOT, name_of

from capo_fast import __version__
from capo_fast.config.core_yaml import CoreLoader

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_has_this_version_and_names_the_paper():
    citation = read_yaml("CITATION.cff")
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    [paper] = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2508.02298" and len(paper["authors"]) == 5


def test_the_workflow_runs_ci_run():
    steps = read_yaml(".github/workflows/ci.yml")["jobs"]["run"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_hooks_are_local_and_run_the_tools_of_make_lint():
    config = read_yaml(".pre-commit-config.yaml")
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    tools = re.findall(r"\$\(BIN\)/(\S+)", lint)
    assert {re.match(r"\.venv/bin/(\S+)", entry)[1] for entry in entries} == {*tools, "python"}
    assert all((ROOT / word).exists() for entry in entries for word in entry.split() if word.startswith("tests/"))


def test_the_image_copies_existing_files_that_dockerignore_allows():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied and all((ROOT / name).exists() for name in copied)
    assert [name for name in copied if f"!{name.split('/')[0]}" not in allowed] == []


@pytest.mark.parametrize(("name", "most"), [("CHANGELOG.md", 80), ("AGENTS.md", 60)])
def test_short_documents_stay_short(name, most):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most


def test_changes_are_under_the_headings_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)", text, re.MULTILINE)[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)", text, re.MULTILINE)) <= kinds


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=name_of)
def test_nothing_claims_to_be_on_a_package_index(document):
    assert not re.search(r"pip install (?:-\S+ )*['\"]?capo[-_](?:fast|kernels)", document.read_text(encoding="utf-8"))


def found_in_the_trainer(pattern):
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "capo_fast").rglob("*.py")}
    return {match[0]: path.name for path, text in sources.items() for match in re.finditer(pattern, text)}


def test_the_security_policy_holds_for_the_code():
    """No model code runs, no file is unpickled, and YAML creates no objects."""
    assert found_in_the_trainer(r"trust_remote_code\S*").keys() <= {
        "trust_remote_code=False",
        "trust_remote_code=False,",
        "trust_remote_code=False)",
    }
    assert not found_in_the_trainer(r"\btorch\.load\(|pickle\.load\(|yaml\.unsafe")
    assert set(found_in_the_trainer(r".*pickle\.loads.*").values()) == {"errors.py", "job.py", "samples.py"}, "of ranks"
    assert all("Loader=CoreLoader" in found for found in found_in_the_trainer(r"yaml\.load\(.*"))
    assert issubclass(CoreLoader, yaml.SafeLoader)
