"""The processes of the server that a run starts for its critic: start, files and log."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from scripted_child import command, has_ended, processes, scripted
from scripted_server import Scripted

import capo_fast.engine.server_process as server_process
from capo_fast.config.critic import ServerConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.server_process import last_error, running_server, server_command


def test_of_a_server_s_files_only_the_log_remains(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    child = tmp_path / "child"
    with running_server("judge", ServerConfig(), 1, tmp_path / "run/log", 0, command("serve", child)) as server:
        words = Path(f"/proc/{processes(child)[0]}/cmdline").read_text()
        environment = json.loads((child / "environment").read_text())
        assert (server.folder.stat().st_mode & 0o777, environment["TMPDIR"]) == (0o700, str(server.folder))
        assert environment["VLLM_API_KEY"] == server.key and server.key not in words
        assert "LOCAL_RANK" not in environment, "the server is not a rank"
        assert server.key not in os.environ.values(), "every child of the rank would inherit it"
        with pytest.raises(BlockingIOError):  # systemd-tmpfiles skips locked folders
            fcntl.flock(os.open(server.folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert has_ended(child)
    assert not server.folder.exists()
    assert "starting" in server.log.read_text()


def test_a_taken_port_fails_the_start(tmp_path):
    def on_that_port(model, config, gpus, port):
        return scripted("serve", tmp_path, model, config, gpus, taken.getsockname()[1])

    line = r"exited with status 1; the end of its log .*: OSError: .*Address already in use"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EngineError, match=line):
        running_server("judge", ServerConfig(), 1, tmp_path / "log", 0, on_that_port).__enter__()


@pytest.mark.parametrize("user", [os.getuid(), 10**6])
def test_another_server_on_the_port_is_not_mistaken_for_the_critic_s(user, tmp_path, monkeypatch):
    """The other server answers at once, long before vLLM notices that the port is taken."""
    other = Scripted()
    monkeypatch.setattr(os, "getuid", lambda: user)
    other.models = 200, {"data": [{"id": "somebody's"}]}
    monkeypatch.setattr(server_process, "free_port", lambda: other.server_port)
    try:
        with pytest.raises(EngineError, match=r"Address already in use"):
            running_server("judge", ServerConfig(), 1, tmp_path / "log", 0, command("serve", tmp_path)).__enter__()
    finally:
        other.stop()
    assert bool(other.headers) == (user != 10**6), "another user's server gets no request and no key"


def test_only_the_log_remains_if_the_process_can_not_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server_process, "PYTHON", (str(tmp_path / "no such program"),))
    with pytest.raises(EngineError, match=r"the server of judge could not be started: .*No such file"):
        running_server("judge", ServerConfig(), 1, tmp_path / "log", 0).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_log_of_an_earlier_server_is_kept_but_not_quoted(tmp_path):
    log = tmp_path / "log"
    log.write_text("RuntimeError: of the one before\n")
    with pytest.raises(EngineError, match=r"exited with status 3; its log .* is empty"):
        running_server("judge", ServerConfig(), 1, log, 0, ends_without_a_line).__enter__()
    assert log.read_text() == "RuntimeError: of the one before\n"


def ends_without_a_line(model, config, gpus, port):
    return [sys.executable, "-c", "raise SystemExit(3)"]


def test_a_failed_start_reports_the_log_s_last_error(tmp_path):
    with pytest.raises(EngineError, match=r"ValueError: not enough memory"):
        running_server("judge", ServerConfig(), 1, tmp_path / "log", 0, command("fail", tmp_path)).__enter__()


LOGS = {
    "one\n\n(EngineCore pid=3) INFO 11-29 15:00:01 [core.py:9] two \n": "two",
    "usage: ...\napi_server.py: error: argument --dtype: invalid\n": "api_server.py: error: argument --dtype: invalid",
    "torch.OutOfMemoryError: CUDA out of memory.\nTraceback:\nRuntimeError: Engine failed. See root cause above.\n": (
        "torch.OutOfMemoryError: CUDA out of memory."
    ),
    "": "",
}


@pytest.mark.parametrize("text", LOGS)
def test_the_log_line_that_names_the_failure_is_found(text, tmp_path):
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == LOGS[text]


def test_vllms_own_command_never_has_the_key_and_listens_on_loopback():
    words = server_command("judge", ServerConfig(enforce_eager=True), 2, 8123)
    pairs = dict(pairwise(words))
    assert (pairs["--model"], pairs["--host"], pairs["--port"]) == ("judge", "127.0.0.1", "8123")
    assert (pairs["--tensor-parallel-size"], pairs["--generation-config"]) == ("2", "vllm")
    assert "--api-key" not in words
    assert "--enforce-eager" in words
