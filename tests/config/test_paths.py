"""Paths of files, of package data and of models."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils._http import default_client_factory

from capo_fast.config import hub
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
    ("text", "expected"),
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
def test_a_bad_packaged_path_is_a_one_line_error(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_path(text)
    message = str(caught.value)
    assert message.startswith(text) and expected in message and "\n" not in message


def test_model_is_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reach_hub", lambda: None)
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("Qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"
    assert resolve_model("pkg://capo_fast/tiny") == str(resolve_path("pkg://capo_fast/tiny"))


def test_a_model_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for text, expected in [
        (str(tmp_path / "file"), "model.path: .*/file: a file, wanted a model's folder"),
        (str(tmp_path / "nothing"), "no such model folder"),
        ("./nothing", "no such model folder"),
        ("a/b/c", "no such model folder"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            resolve_model(text)


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_a_mirror_of_the_hub_is_tried_at_the_port_of_its_scheme(scheme, port, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"{scheme}://mirror")
    monkeypatch.setattr(hub, "getproxies_environment", lambda: {"ftp": "x"})
    monkeypatch.setattr(hub.socket, "create_connection", lambda place, limit: tried.append(place) or socket.socket())
    assert hub.reach_hub.__wrapped__() is None
    assert tried == [("mirror", port)]


def test_without_a_network_the_hub_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies_environment", dict)
    with socket.socket() as closed_port:
        closed_port.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{closed_port.getsockname()[1]}")
        cause = hub.reach_hub.__wrapped__()
    assert cause == "127.0.0.1 can't be reached (Connection refused)"
    try:
        with pytest.raises(OfflineModeIsEnabled):  # on this error the client reads its cache, without retries
            huggingface_hub.get_session().get("http://127.0.0.1")
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
    monkeypatch.setattr(hub, "reach_hub", lambda: cause)
    with pytest.raises(
        ConfigError, match=r"critic\.path: no/such: no such folder, nor in the cache .*, and 127\.0\.0\.1"
    ):
        resolve_model("no/such", "critic.path")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: "config.json")
    capsys.readouterr()
    assert [resolve_model("in/cache") for _ in range(3)] == ["in/cache"] * 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("capo_fast: warning: in/cache comes from the cache of the Hugging Face hub: 127.0.0.1")
