"""The server that a run starts for its critic, with a stub of vLLM's server: start, sleep, wake-up, and every exit."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from forked import FORKS, run_ranks
from scripted_child import all_end, command, has_ended, processes, query_on_a_rank, serve_until_killed, shared_by
from scripted_server import query, query_until_failure, request

import capo_fast.engine.critic_server as critic_server
from capo_fast.config.critic import EndpointConfig, ServerConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.critic_server import ServedCritic, gpus_of, start_critic_server
from capo_fast.engine.endpoint import EndpointCritic
from capo_fast.engine.server_key import KeyOfEveryRoute
from capo_fast.errors import ConfigError
from capo_fast.rollout.turns import Turns


def started(folder, mode="serve", sleeps=False, **settings):
    config = ServerConfig(**settings)
    return start_critic_server("judge", config, 1, folder / "run", 20.0, sleeps, command(mode, folder / "child"))


def client_of(server, **settings):
    return EndpointCritic(server.endpoint(EndpointConfig(**{"retries": 0} | settings)), key=server.key)


def clean_up(child: Path) -> None:
    """Kill the processes and delete the shared memory that a failed test leaves."""
    for pid in processes(child):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in shared_by(child):
        path.unlink(missing_ok=True)


# ---- start and exit ----


@pytest.mark.usefixtures("fork_server")
def test_the_server_exits_with_a_killed_trainer(tmp_path):
    trainer = FORKS.Process(target=serve_until_killed, args=("serve", tmp_path))
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
        clean_up(tmp_path)
        if watcher.is_running():
            watcher.kill()


def test_a_start_that_fails_gives_the_reason(tmp_path, one_rank):
    with pytest.raises(EngineError) as error:
        started(tmp_path, "fail")
    log = tmp_path / "run/critic-server-0.log"
    assert str(error.value) == (
        "critic.path: the server of judge exited with status 1; the end of its log "
        f"{log}: ValueError: not enough memory for 1 sequence"
    )


def test_a_server_that_does_not_answer_is_stopped(tmp_path, one_rank):
    with pytest.raises(EngineError, match=r"of judge has not answered within 1 s \(critic\.server\.start_timeout_s\)"):
        started(tmp_path, "mute", start_timeout_s=1.0)
    assert has_ended(tmp_path / "child")


SIZES = {"num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944}


@pytest.mark.parametrize(
    ("wanted", "line"), [(99, "found 99, wanted at most 8, "), (8, "found 8, wanted a divisor of ")]
)
def test_the_server_s_gpus_exist_and_divide_the_model(wanted, line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match=rf"^critic\.server\.tensor_parallel: {line}"):
        gpus_of(ServerConfig(tensor_parallel=wanted), SIZES, 8)


@pytest.mark.parametrize(("ranks", "gpus"), [(8, 4), (3, 2), (1, 1)])
def test_the_server_uses_only_the_gpus_of_the_ranks(ranks, gpus, monkeypatch):
    """Another job may use the machine's other GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert gpus_of(ServerConfig(), SIZES, ranks) == gpus


# ---- the key ----


@pytest.mark.parametrize(("authorization", "status"), [(b"Bearer mine", 200), (b"Bearer other", 401), (b"", 401)])
def test_every_route_requires_the_key(authorization, status, monkeypatch):
    """vLLM itself requires the key only under /v1, not for the sleep route."""
    monkeypatch.setenv("VLLM_API_KEY", "mine")
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/sleep", "headers": [(b"authorization", authorization)]}
    asyncio.run(KeyOfEveryRoute(app)(scope, None, send))
    assert sent[0]["status"] == status


# ---- critiques, and exits during critiques ----


def test_critiques_use_the_same_client_as_for_a_remote_server(tmp_path, one_rank):
    server = started(tmp_path)
    critic = ServedCritic(server, client_of(server))
    assert {name: answer.text for name, answer in query(critic, request("a"), request("b")).items()} == {
        "a": "Judgment: Yes",
        "b": "Judgment: Yes",
    }
    critic.close()
    assert has_ended(tmp_path / "child")


@pytest.mark.parametrize(("mode", "how"), [("kill:3", "was killed by SIGKILL"), ("exit:3", "exited with status 9")])
@pytest.mark.parametrize("on_failure", ["stop", "outcome"])
def test_a_server_that_exits_during_critiques_ends_the_run(mode, how, on_failure, tmp_path, one_rank):
    """The error has the exit status and the last log line, whatever endpoint.on_failure is."""
    server = started(tmp_path, mode)
    critic = ServedCritic(server, client_of(server, concurrency=1, on_failure=on_failure))
    line = rf"^critic\.path: the server of judge {how}; the end of its log .*: RuntimeError: the last of its lines$"
    answers = query_until_failure(critic, 9, line)
    assert len(answers) <= 2 and not any(answer.error for answer in answers)
    critic.close()
    assert has_ended(tmp_path / "child")


def test_a_killed_supervisor_ends_the_run_and_the_server(tmp_path, one_rank):
    """An operator may mistake the supervisor for the server and kill it."""
    server, child = started(tmp_path), processes(tmp_path / "child")[0]
    critic = ServedCritic(server, client_of(server))
    psutil.Process(child).parent().kill()
    assert all_end([child])
    query_until_failure(critic, 1, r"^critic\.path: the server of judge was killed, or exited with rank 0, which")
    critic.close()
    assert not server.process.folder.exists()
    clean_up(tmp_path / "child")  # its worker has a process group of its own


def test_a_server_that_hangs_times_out_and_is_stopped(tmp_path, one_rank, monkeypatch):
    server = started(tmp_path)
    critic = ServedCritic(server, client_of(server, timeout_s=0.3))
    os.kill(processes(tmp_path / "child")[0], signal.SIGSTOP)
    monkeypatch.setattr(critic_server, "END_KNOWN_S", 0.0)
    query_until_failure(critic, 1, r"no answer in \d+ s \(endpoint\.timeout_s: 0\.3, ")
    critic.close()
    assert has_ended(tmp_path / "child")


# ---- turns ----


@pytest.mark.usefixtures("fork_server")
def test_the_ranks_of_a_node_share_one_server(tmp_path):
    """The node's first rank starts the server. All ranks use its key, which is not sent to them. The server sleeps and
    wakes up once for all ranks."""
    statuses, output = run_ranks(query_on_a_rank, tmp_path / "log", tmp_path)
    assert (statuses, sorted(output.split("\n"))) == ([0, 0], ["", "rank-0: Judgment: Yes", "rank-1: Judgment: Yes"])
    assert not (tmp_path / "rank-1/pids").exists()
    paths = (tmp_path / "rank-0/requests").read_text().split()
    assert paths == ["/sleep?level=1", "/wake_up", *["/v1/chat/completions"] * 2, "/sleep?level=1"]
    assert has_ended(tmp_path / "rank-0")


def test_the_server_sleeps_while_others_use_its_gpus(tmp_path, one_rank):
    server = started(tmp_path, sleeps=True)
    server.sleep()  # no request: it has been asleep since its start
    server.wake_up()
    server.wake_up()
    server.sleep()
    server.close()
    paths = (tmp_path / "child/requests").read_text().split()
    assert paths == ["/sleep?level=1", "/wake_up", "/sleep?level=1"]


class Recorded:
    """A stand-in for `Weights` or a server that records calls."""

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
