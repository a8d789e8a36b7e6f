"""The kills that a seed draws, the places of a kill, its faults, and the tables."""

from __future__ import annotations

import json
from types import SimpleNamespace

import psutil
import pytest

from bench.chaos import kills
from bench.chaos.__main__ import main
from bench.chaos.hosts import HostError, _run
from bench.chaos.job import Place
from bench.chaos.kills import KINDS, STAGES, Chain, Kill, draw, wanted
from bench.chaos.runs import EVERY, is_of
from bench.chaos.table import tables

START = [Place(0, "start", 1.0), Place(3, "sync", 2.0), Place(3, "learn", 3.0), Place(4, "sync", 4.0)]


def test_a_seed_gives_the_same_kills_of_every_kind_at_every_stage():
    drawn = [draw(seed, number) for seed in (0, 1) for number in range(100)]
    assert drawn == [draw(seed, number) for seed in (0, 1) for number in range(100)]
    assert drawn[:100] != drawn[100:]
    assert {kill.kind for kill in drawn} == set(KINDS) and {kill.host for kill in drawn} == {0, 1}
    assert {kill.stage for kill in drawn} == set(STAGES)
    assert {kill.ahead for kill in drawn} == set(range(1, EVERY + 2))
    assert not any(kill.kind == "worker" and kill.stage == "start" for kill in drawn), "workers start later"


@pytest.mark.parametrize(
    ("stage", "ahead", "since", "places"),
    [
        ("start", 3, 0.0, START[:1]),
        ("sync", 1, 0.0, [START[1], START[3]]),
        ("sync", 2, 0.0, [START[3]]),
        ("sync", 1, 2.0, [START[3]]),
        ("learn", 2, 0.0, []),
    ],
)
def test_a_kill_is_n_steps_after_the_resume_and_after_the_previous_kill(stage, ahead, since, places):
    assert wanted(Kill(0, "rank", 0, stage, ahead, 0.5), START, since) == places


def test_tables_count_kills_and_name_faults(tmp_path):
    kill = {"number": 0, "victim": "rank on left", "stage": "learn", "ended_s": 3.0, "said": "a line", "faults": []}
    worker, late = kill | {"victim": "worker on left", "ended_s": None}, kill | {"said": ""}
    machine = {"cores": 2, "processor": "a CPU", "commit": "0f3a"}
    shard = machine | {"seed": 0, "runs": 1, "starts": 3, "faults": []}
    write(tmp_path / "kills-0.json", shard | {"kills": [kill, late | {"ended_s": 5.0}, worker]})
    write(tmp_path / "slow-rank.json", machine | {"case": "slow-rank", "seen": "stopped", "faults": []})
    text = tables(tmp_path)
    assert "3 SIGKILLs in 1 runs and 3 starts, no fault. After 1 the job exited by itself" in text
    assert "1 came after all steps were completed" in text and "1 hit verifier workers" in text
    assert "commit 0f3a:" in text
    assert "| rank on left | 2 | learn | 4.0 | 5.0 |" in text and "| worker on left | 1 | learn | continues |" in text
    assert "| slow-rank | stopped | equal |" in text
    assert main(["--kills", "3", "--seed", "0", "--out", str(tmp_path)]) == 0
    write(tmp_path / "kills-1.json", shard | {"kills": [kill | {"faults": ["2 lines"]}], "commit": "77aa"})
    text = tables(tmp_path)
    assert "4 SIGKILLs in 2 runs and 6 starts, **1 faults**" in text and "commit 0f3a and 77aa:" in text
    assert main(["--kills", "3", "--seed", "0", "--out", str(tmp_path)]) == 1, "faults of an earlier call count"


class Ended:
    """A job whose rank exits just before the kill."""

    def stages(self, rank):
        return START

    def wait_for(self, true):
        return true()

    def end(self):
        pass


def test_a_kill_without_a_process_is_kept_for_the_next_run(tmp_path, monkeypatch):
    victims = [[object()], [], []]  # one process when the stage begins, none afterwards
    monkeypatch.setattr(kills, "victims", lambda job, host, kind: victims.pop(0))
    notes, left = [], [Kill(0, "rank", 0, "learn", 1, 0.0)]
    chain = Chain([SimpleNamespace(name="left")], tmp_path, SimpleNamespace(seconds={"learn": 0.0}), notes.append)
    assert not chain._kills_in(Ended(), tmp_path, left)
    assert (len(left), notes) == (1, [])


LINE = "capo_fast: error: rank 0 on left died without an error message, as if killed"


@pytest.mark.parametrize(
    ("lines", "done", "seconds", "unlike", "faults"),
    [
        ([LINE], False, 1.0, [], []),
        ([], True, 1.0, [], []),
        ([LINE, LINE], False, 1.0, [], ["2 lines on right, wanted one that names rank 0"]),
        ([LINE], False, None, [], ["still running after 120 s"]),
        ([LINE], False, 1.0, ["step_000002"], ["step_000002 differs from the run without kills"]),
    ],
)
def test_the_faults_after_a_kill_are_found(lines, done, seconds, unlike, faults, tmp_path):
    if done:
        (tmp_path / "summary.json").touch()
    hosts = [SimpleNamespace(name=name, files=lambda: ["x"]) for name in ("left", "right")]
    chain = Chain(hosts, tmp_path / "work", SimpleNamespace(unlike_checkpoints=lambda run: unlike), print)
    outcome = kills.Outcome(0, "rank on left", "learn of step 3", 3, "learn", 0.1)
    job = SimpleNamespace(end=lambda limit: seconds, own_lines=lambda host: lines)
    chain._judge(outcome, job, Kill(0, "rank", 0, "learn", 1, 0.0), tmp_path)
    assert (outcome.faults, outcome.ended_s, outcome.files_left) == (faults, seconds, ["left: x", "right: x"])


def test_an_exited_process_is_not_counted_as_killed():
    with psutil.Popen(["sleep", "60"]) as process:
        assert kills.killed(process)
        while process.status() != psutil.STATUS_ZOMBIE:
            pass
        assert not kills.killed(process)


@pytest.mark.parametrize(("commit", "equal"), [("0f3a", True), ("77aa", False), ("0f3a-dirty", False), (None, False)])
def test_a_reference_must_be_of_the_tested_commit(commit, equal):
    assert is_of(commit, {"commit": "0f3a" if commit != "0f3a-dirty" else commit, "seconds": {}}) == equal


def test_hosts_that_cannot_be_connected_are_a_host_error():
    with pytest.raises(HostError, match=r"can't make a host: false left failed"):
        _run(["false", "left"])


def write(path, found):
    path.write_text(json.dumps(found))
