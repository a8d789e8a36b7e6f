"""Paths on disk, in packages, and of models."""

from pathlib import Path

import pytest

from capo_fast.config.paths import resolve_model, resolve_path
from capo_fast.errors import ConfigError


def test_plain_paths_pass_and_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_path("runs/a.yaml") == Path("runs/a.yaml")
    assert resolve_path("~/a.yaml") == Path("/home/someone/a.yaml")


def test_packaged_file_and_folder_are_found() -> None:
    assert resolve_path("pkg://capo_fast.tiny/heldout.jsonl").is_file()
    assert resolve_path("pkg://capo_fast/tiny").is_dir()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pkg://no_such_package/a.txt", "can't open package no_such_package"),
        ("pkg://capo_fast.tiny/nothing.jsonl", "package capo_fast.tiny has no nothing.jsonl"),
        ("pkg://capo_fast.records/a.txt", "capo_fast.records"),
        ("pkg://.relative/a.txt", "can't open package .relative"),
        ("pkg://capo_fast.tiny", "wanted pkg://package.name/relative/file"),
        ("pkg:///file", "wanted pkg://package.name/relative/file"),
        ("pkg://capo_fast/", "wanted pkg://package.name/relative/file"),
    ],
)
def test_a_bad_packaged_path_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_path(text)
    message = str(caught.value)
    assert message.startswith(text) and says in message and "\n" not in message


def test_model_is_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("Qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"
    assert resolve_model("pkg://capo_fast/tiny") == str(resolve_path("pkg://capo_fast/tiny"))


def test_model_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for text, says in [
        (str(tmp_path / "file"), "model.path: .*/file: a file, wanted a model's folder"),
        (str(tmp_path / "nothing"), "no such model folder"),
        ("./nothing", "no such model folder"),
        ("a/b/c", "no such model folder"),
    ]:
        with pytest.raises(ConfigError, match=says):
            resolve_model(text)
