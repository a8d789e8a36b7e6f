"""A run that starts its critic's server (`critic.mode: server`), with a stub of vLLM's server."""

from __future__ import annotations

import gzip
import json
from functools import partial

import pytest
from model_folders import copied
from scripted_child import all_end, command, processes
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, scripted_engine, small_arguments

import capo_fast.loaders as loaders
import capo_fast.train as train
from capo_fast.critic_eval import main as critic_eval
from capo_fast.records import Completion

SETTINGS = [
    *("--critic.mode", "server", "--critic.votes", "2", "--critic.server.max_model_len", "256"),
    *("--endpoint.retries", "0", "--eval.path", "none"),
]


@pytest.fixture
def critic_path(tmp_path):
    return copied(tmp_path / "judge")


@pytest.fixture
def served_by(tmp_path, monkeypatch):
    """Makes servers start as scripted children in this mode."""
    start = loaders.start_critic_server

    def served_by(mode):
        child = partial(start, command=command(mode, tmp_path / "child"))
        monkeypatch.setattr(loaders, "start_critic_server", child)

    return served_by


@pytest.fixture
def train_with(critic_path, served_by, tmp_path, monkeypatch):
    """The exit status of the command with a critic that a scripted child serves in this mode."""
    original = train.run

    def train_with(mode, *arguments, engine=scripted_engine):
        monkeypatch.setattr(train, "run", lambda config: original(config, engine()))
        served_by(mode)
        run = ["--run.dir", str(tmp_path / "run"), "--critic.path", str(critic_path), "--checkpoint.every", "1"]
        return train.main(small_arguments(*run, *SETTINGS, *arguments))

    return train_with


def critiques_of(folder, step):
    with gzip.open(folder / "rollouts" / f"{step:06d}.jsonl.gz", "rt") as file:
        return [critique for line in file for critique in json.loads(line)["critiques"]]


def test_a_run_resumes_after_its_server_was_killed(train_with, tmp_path, capsys):
    """The server is not restarted silently: one line names it. The same command resumes the run."""
    run = tmp_path / "run"
    assert train_with("kill:40", "--train.steps", "2") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    critic_path, log = tmp_path / "judge", run / "critic-server-0.log"
    assert error == (
        f"capo_fast: error: critic.path: the server of {critic_path} was killed by SIGKILL; the end of its log {log}: "
        "RuntimeError: the last of its lines"
    )
    assert all_end(processes(tmp_path / "child"))
    assert train_with("serve", "--train.steps", "2") == 0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2]
    assert {line["critic/overlap"] for line in steps} == {0.0}, "the two engines take turns"
    found = critiques_of(run, 2)
    assert found and all(critique["wrong_steps"] == [] and not critique["abstained"] for critique in found)
    assert all_end(processes(tmp_path / "child"))


class SleepingEngine(ScriptedEngine):
    """Fails if it is called while it sleeps: on a GPU its memory is released then."""

    def __init__(self):
        super().__init__(scored, score_with(MODEL))
        self.asleep = False

    def sleep(self):
        self.asleep = True

    def load(self, weights):
        self.asleep = False
        super().load(weights)

    def add(self, request):
        assert not self.asleep, f"{request.id} is sent to a sleeping engine"
        super().add(request)

    def checksums(self):
        assert not self.asleep
        return super().checksums()


def scored(request):
    """Like `answer`, with log-probs of -1 for scored tokens."""
    tokens = request.prompt_ids[-request.scored :] if request.scored else ()
    return Completion(request.id, tokens, (-1.0,) * len(tokens), "", True) if request.scored else answer(request)


def test_the_policys_engine_is_awake_for_all_its_calls(train_with, tmp_path):
    """It sleeps during the critiques, and is awake for rollouts and for the estimator after the critiques."""
    assert train_with("serve", "--train.steps", "2", "--credit.process", "critique-ratio", engine=SleepingEngine) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["credit/requests"] > 0 for line in lines)


def test_a_model_is_scored_at_a_server_of_the_command(critic_path, served_by, tmp_path):
    """The results state it: a server's engine may differ in dtype and context from the engine in the process."""
    served_by("serve")
    out = tmp_path / "out"
    arguments = [
        "--critic",
        str(critic_path),
        "--config",
        "configs/tiny.yaml",
        "--data",
        "tiny",
        "--limit",
        "3",
        "--out",
        str(out),
    ]
    assert critic_eval([*arguments, *SETTINGS]) == 0
    results = json.loads((out / "results.json").read_text())
    settings, counts = results["settings"], results["benchmarks"]["tiny"]["counts"]
    assert (settings["model"], settings["critic.server.max_model_len"]) == (str(critic_path), 256)
    assert (counts["critiques"], counts["abstained"], counts["tokens_in"]) == (9, 0, 90)
    assert (out / "critic-server-0.log").exists()
    assert all_end(processes(tmp_path / "child"))
