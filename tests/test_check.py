"""`capo check`: a line for each thing that a run needs, and exit status 1 at the first that would stop it."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest

from capo_fast.check import main
from capo_fast.config.paths import resolve_path

NAMES = ["configuration", "reward", "engine", "model", "data", "critic"]


def checked(capsys, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and lines."""
    status = main(arguments)
    return status, capsys.readouterr().out.splitlines()


def test_the_embedded_default_could_start(capsys):
    status, lines = checked(capsys)
    assert status == 0
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in NAMES]
    assert lines[0].endswith("capo, 16 steps of 16 prompts x 8 rollouts")
    assert lines[4].endswith("4,096 problems, the longest prompt 14 of 208 tokens; 400 held out")


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the embedded model, to be damaged."""
    return Path(shutil.copytree(resolve_path("pkg://capo_fast.tiny/model"), tmp_path / "model"))


def test_what_would_stop_a_run_ends_the_check(capsys, tmp_path):
    (tmp_path / "template.txt").write_text("nothing in it")
    for arguments, failed in [
        (["--train.steps", "x"], "configuration  train.steps: found 'x', wanted integer >= 0"),
        (["--reward.fn", "capo_fast.verify:nothing"], "reward         reward.fn: capo_fast.verify:nothing can't be"),
        (["--model.path", str(tmp_path / "none")], f"model          {tmp_path}/none: no such model folder"),
        (["--policy.loss_kernel", "triton"], "model          policy.loss_kernel: "),
        (["--data.path", "none.jsonl"], "data           none.jsonl: can't read it"),
        (
            ["--engine.max_model_len", "50", "--critic.max_tokens", "9"],
            "data           4096 of 4096 prompts are",
        ),
        (["--critic.prompt", str(tmp_path / "template.txt")], "critic         critic.prompt: "),
    ]:
        status, lines = checked(capsys, *arguments)
        assert status == 1
        assert lines[-1].startswith(f"FAILED  {failed}")
        assert all(line.startswith("ok ") for line in lines[:-1])


def test_weights_must_be_there(capsys, model):
    arguments = ["--model.path", str(model)]
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (model / "model.safetensors").rename(model / "part-1.safetensors")
    assert "no weights, wanted one of model.safetensors" in checked(capsys, *arguments)[1][-1]
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checked(capsys, *arguments)[1][-1].endswith("index.json names part-2.safetensors, which is not there")
    (model / "part-2.safetensors").touch()
    assert checked(capsys, *arguments)[0] == 0


def test_a_frozen_critic_must_have_the_policy_s_architecture(capsys, model):
    arguments = ["--critic.path", str(model)]
    assert checked(capsys, *arguments)[0] == 0
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * config["hidden_size"]}))
    status, lines = checked(capsys, *arguments)
    assert status == 1 and lines[-1].startswith("FAILED  critic         critic.path: its hidden_size is ")


@pytest.fixture
def server(monkeypatch):
    """Address of a server that offers one model to those with the key."""

    class Models(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.path == "/v1/models" and self.headers["Authorization"] == "Bearer secret-key"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": "critic-7b"}]}).encode())

        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Models) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/v1"
        made.shutdown()


def test_a_critic_s_server_is_asked_for_its_models(capsys, server, monkeypatch):
    arguments = ["--critic.mode", "endpoint", "--endpoint.url", server]
    status, lines = checked(capsys, *arguments)
    assert (status, lines[-1]) == (0, f"ok      critic         {server} offers critic-7b")
    line = checked(capsys, *arguments, "--endpoint.model", "other")[1][-1]
    assert line == "FAILED  critic         endpoint.model: found other, the server offers critic-7b"
    monkeypatch.delenv("OPENAI_API_KEY")
    line = checked(capsys, *arguments)[1][-1]
    assert line.startswith(
        f"FAILED  critic         endpoint.url: {server}/models gives no list of models: HTTP Error 401"
    )
