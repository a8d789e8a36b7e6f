"""The server that a run starts for its critic, on a stand-in for vLLM's: its start, its turns, and every end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from forked import FORKS, run_ranks
from scripted_child import all_end, ask_on_a_rank, command, hold, processes, scripted
from scripted_server import ask, ask_until_it_breaks, request

import capo_fast.engine.critic_server as critic_server
from capo_fast.config.critic import EndpointConfig, ServerConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.critic_server import KEY, ServedCritic, gpus_of, start_critic_server
from capo_fast.engine.endpoint import EndpointCritic
from capo_fast.engine.server_key import KeyOfEveryRoute
from capo_fast.engine.server_process import last_error, running_server, server_command
from capo_fast.errors import ConfigError
from capo_fast.rollout.turns import Turns


def started(folder, fate="serve", sleeps=False, **settings):
    config = ServerConfig(**settings)
    return start_critic_server("judge", config, folder / "run", 20.0, sleeps, command(fate, folder / "child"))


def client_of(server, **settings):
    return EndpointCritic(server.endpoint(EndpointConfig(**{"retries": 0} | settings)))


def has_ended(child: Path) -> bool:
    """All of it: processes, and what they leave in memory."""
    return all_end(processes(child), shared_by(child))


def end(child: Path) -> None:
    """What a test leaves that has failed."""
    for pid in processes(child):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in shared_by(child):
        path.unlink(missing_ok=True)


def shared_by(child: Path) -> list[Path]:
    found = [Path(name) for name in (child / "shared").read_text().split()]
    assert len(found) == 3
    return found


# ---- its start and its end ----


def test_nothing_is_left_of_it_but_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    child = tmp_path / "child"
    with running_server("judge", ServerConfig(), 1, tmp_path / "run/log", 0, command("serve", child)) as place:
        words = Path(f"/proc/{processes(child)[0]}/cmdline").read_text()
        environment = json.loads((child / "environment").read_text())
        assert (place.folder.stat().st_mode & 0o777, environment["TMPDIR"]) == (0o700, str(place.folder))
        assert environment["VLLM_API_KEY"] == place.key and place.key not in words
        assert "LOCAL_RANK" not in environment, "it is none of the ranks"
    assert has_ended(child)
    assert not place.folder.exists()
    assert "starting" in place.log.read_text()


@pytest.mark.usefixtures("fork_server")
def test_it_ends_with_a_trainer_that_is_killed(tmp_path):
    trainer = FORKS.Process(target=hold, args=("serve", tmp_path))
    trainer.start()
    while not (tmp_path / "ready").exists():
        assert trainer.is_alive()
        time.sleep(0.02)
    watcher = psutil.Process(processes(tmp_path)[0]).parent()
    trainer.kill()
    trainer.join()
    try:
        assert has_ended(tmp_path)
    finally:
        end(tmp_path)
        if watcher.is_running():
            watcher.kill()


def test_a_start_that_fails_gives_the_reason(tmp_path, one_rank):
    with pytest.raises(EngineError) as error:
        started(tmp_path, "fail")
    log = tmp_path / "run/critic-server-0.log"
    assert str(error.value) == (
        "critic.path: the server of judge ended with exit status 1; the end of its log "
        f"{log}: ValueError: not enough memory for 1 sequence"
    )
    assert KEY not in os.environ


def test_one_that_does_not_answer_is_ended(tmp_path, one_rank):
    with pytest.raises(EngineError, match=r"of judge has not answered within 1 s \(critic\.server\.start_timeout_s\)"):
        started(tmp_path, "mute", start_timeout_s=1.0)
    assert has_ended(tmp_path / "child")


def test_a_port_that_another_has_taken_ends_the_start(tmp_path):
    def on_that_port(model, config, gpus, port):
        return scripted("serve", tmp_path, model, config, gpus, taken.getsockname()[1])

    line = r"exit status 1; the end of its log .*: OSError: .*Address already in use"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EngineError, match=line):
        running_server("judge", ServerConfig(), 1, tmp_path / "log", 0, on_that_port).__enter__()


def test_its_gpus_are_there():
    with pytest.raises(ConfigError, match=r"critic\.server\.tensor_parallel: found 99, wanted at most "):
        gpus_of(ServerConfig(tensor_parallel=99))


LOGS = {
    "one\n\n(EngineCore pid=3) INFO 11-29 15:00:01 [core.py:9] two \n": "two",
    "usage: ...\napi_server.py: error: argument --dtype: invalid\n": "api_server.py: error: argument --dtype: invalid",
    "torch.OutOfMemoryError: CUDA out of memory.\nTraceback:\nRuntimeError: Engine failed. See root cause above.\n": (
        "torch.OutOfMemoryError: CUDA out of memory."
    ),
    "": "",
}


@pytest.mark.parametrize("text", LOGS)
def test_the_line_of_a_log_that_says_what_failed(text, tmp_path):
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == LOGS[text]


def test_vllms_own_command_never_has_the_key_and_listens_on_loopback():
    words = server_command("judge", ServerConfig(enforce_eager=True), 2, 8123)
    pairs = dict(pairwise(words))
    assert (pairs["--model"], pairs["--host"], pairs["--port"]) == ("judge", "127.0.0.1", "8123")
    assert (pairs["--tensor-parallel-size"], pairs["--generation-config"]) == ("2", "vllm")
    assert "--api-key" not in words
    assert "--enforce-eager" in words


# ---- its key ----


@pytest.mark.parametrize(("given", "status"), [(b"Bearer mine", 200), (b"Bearer other", 401), (b"", 401)])
def test_every_route_wants_the_key(given, status, monkeypatch):
    """vLLM itself guards /v1, and not what puts it to sleep."""
    monkeypatch.setenv("VLLM_API_KEY", "mine")
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/sleep", "headers": [(b"authorization", given)]}
    asyncio.run(KeyOfEveryRoute(app)(scope, None, send))
    assert sent[0]["status"] == status


# ---- critiques, and an end amid them ----


def test_critiques_go_the_road_of_a_server_elsewhere(tmp_path, one_rank):
    server = started(tmp_path)
    critic = ServedCritic(server, client_of(server))
    assert {name: answer.text for name, answer in ask(critic, request("a"), request("b")).items()} == {
        "a": "Judgment: Yes",
        "b": "Judgment: Yes",
    }
    critic.close()
    assert KEY not in os.environ
    assert has_ended(tmp_path / "child")


@pytest.mark.parametrize(("fate", "how"), [("kill:3", "was ended by SIGKILL"), ("exit:3", "ended with exit status 9")])
@pytest.mark.parametrize("on_failure", ["stop", "outcome"])
def test_one_that_ends_amid_critiques_ends_the_run(fate, how, on_failure, tmp_path, one_rank):
    """With its exit status and its last line, whatever the settings say of a critic that is out of reach."""
    server = started(tmp_path, fate)
    critic = ServedCritic(server, client_of(server, concurrency=1, on_failure=on_failure))
    line = rf"^critic\.path: the server of judge {how}; the end of its log .*: RuntimeError: the last of its lines$"
    came = ask_until_it_breaks(critic, 9, line)
    assert len(came) <= 2 and not any(answer.error for answer in came)
    critic.close()
    assert has_ended(tmp_path / "child")


def test_nothing_goes_on_where_what_watches_it_is_killed(tmp_path, one_rank):
    """As by an operator who takes it for the server."""
    server, child = started(tmp_path), processes(tmp_path / "child")[0]
    critic = ServedCritic(server, client_of(server))
    psutil.Process(child).parent().kill()
    assert all_end([child])
    ask_until_it_breaks(critic, 1, r"^critic\.path: the server of judge was killed, or has ended with rank 0, which")
    critic.close()
    assert not server.place.folder.exists()
    end(tmp_path / "child")  # its worker has a process group of its own


def test_one_that_hangs_is_given_up_and_ended(tmp_path, one_rank, monkeypatch):
    server = started(tmp_path)
    critic = ServedCritic(server, client_of(server, timeout_s=0.3))
    os.kill(processes(tmp_path / "child")[0], signal.SIGSTOP)
    monkeypatch.setattr(critic_server, "END_KNOWN_S", 0.0)
    ask_until_it_breaks(critic, 1, r"no answer in \d+ s \(endpoint\.timeout_s: 0\.3, ")
    critic.close()
    assert has_ended(tmp_path / "child")


# ---- turns ----


@pytest.mark.usefixtures("fork_server")
def test_the_ranks_of_a_node_share_one(tmp_path):
    """Its first rank starts it, and all ask it; it goes to sleep and wakes up once for all."""
    statuses, said = run_ranks(ask_on_a_rank, tmp_path / "said", tmp_path)
    assert (statuses, sorted(said.split("\n"))) == ([0, 0], ["", "rank-0: Judgment: Yes", "rank-1: Judgment: Yes"])
    assert not (tmp_path / "rank-1/pids").exists()
    asked = (tmp_path / "rank-0/asked").read_text().split()
    assert asked == ["/sleep?level=1", "/wake_up", *["/v1/chat/completions"] * 2, "/sleep?level=1"]
    assert has_ended(tmp_path / "rank-0")


def test_it_sleeps_while_others_want_its_gpus(tmp_path, one_rank):
    server = started(tmp_path, sleeps=True)
    server.sleep()  # as it does from its start
    server.wake_up()
    server.wake_up()
    server.sleep()
    server.close()
    asked = (tmp_path / "child/asked").read_text().split()
    assert asked == ["/sleep?level=1", "/wake_up", "/sleep?level=1"]


class Recorded:
    """`Weights`, or a server."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __getattr__(self, what):
        return lambda *arguments: self.calls.append(" ".join(map(str, (self.name, what, *arguments))))


def test_one_engine_sleeps_before_the_other_wakes():
    calls = []
    turns = Turns(Recorded("policy", calls), Recorded("critic", calls))
    turns.hold("policy", 3)
    turns.hold("critic", 3)
    turns.release()
    assert calls == [
        *("critic sleep", "policy hold policy 3", "policy release", "critic wake_up"),
        *("critic sleep", "policy release"),
    ]
