"""A run whose critic is at a server of its own (`critic.mode: server`), on a stand-in for vLLM's."""

from __future__ import annotations

import gzip
import json
from functools import partial

import pytest
from model_folders import copied
from scripted_child import all_end, command, processes
from scripted_world import scripted_engine, small_arguments

import capo_fast.loaders as loaders
import capo_fast.train as train


@pytest.fixture
def trains(tmp_path, monkeypatch):
    """The command with a critic of its own, served by a child of this fate: its exit status."""
    judge, original, start = copied(tmp_path / "judge"), train.run, loaders.start_critic_server
    monkeypatch.setattr(train, "run", lambda config: original(config, scripted_engine()))

    def trains(fate, *arguments):
        child = command(fate, tmp_path / "child")
        monkeypatch.setattr(loaders, "start_critic_server", partial(start, command=child))
        settings = ["--critic.mode", "server", "--critic.path", str(judge), "--critic.votes", "2"]
        settings += ["--critic.server.max_model_len", "256", "--checkpoint.every", "1", "--endpoint.retries", "0"]
        return train.main(small_arguments("--run.dir", str(tmp_path / "run"), *settings, *arguments))

    return trains


def critiques_of(folder, step):
    with gzip.open(folder / "rollouts" / f"{step:06d}.jsonl.gz", "rt") as file:
        return [critique for line in file for critique in json.loads(line)["critiques"]]


def test_a_run_goes_on_after_its_server_has_ended(trains, tmp_path, capsys):
    """The server is not started again silently: one line names it, and the same command resumes the run."""
    run = tmp_path / "run"
    assert trains("kill:40", "--train.steps", "2") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    judge, log = tmp_path / "judge", run / "critic-server-0.log"
    assert error == (
        f"capo_fast: error: critic.path: the server of {judge} was ended by SIGKILL; the end of its log {log}: "
        "RuntimeError: the last of its lines"
    )
    assert all_end(processes(tmp_path / "child"))
    assert trains("serve", "--train.steps", "2") == 0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2]
    assert {line["critic/overlap"] for line in steps} == {0.0}, "the two engines take turns"
    found = critiques_of(run, 2)
    assert found and all(critique["wrong_steps"] == [] and not critique["abstained"] for critique in found)
    assert all_end(processes(tmp_path / "child"))
