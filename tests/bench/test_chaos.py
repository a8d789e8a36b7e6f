"""Which kills a seed gives, where a kill may come, and what the tables make of its outcome."""

from __future__ import annotations

import json

import pytest

from bench.chaos.job import Place
from bench.chaos.kills import KINDS, STAGES, Kill, draw, wanted
from bench.chaos.runs import EVERY
from bench.chaos.table import tables

START = [Place(0, "start", 1.0), Place(3, "sync", 2.0), Place(3, "learn", 3.0), Place(4, "sync", 4.0)]


def test_a_seed_gives_the_same_kills_of_every_kind_at_every_stage():
    kills = [draw(seed, number) for seed in (0, 1) for number in range(100)]
    assert kills == [draw(seed, number) for seed in (0, 1) for number in range(100)]
    assert kills[:100] != kills[100:]
    assert {kill.kind for kill in kills} == set(KINDS) and {kill.host for kill in kills} == {0, 1}
    assert {kill.stage for kill in kills} == set(STAGES)
    assert {kill.ahead for kill in kills} == set(range(1, EVERY + 2))
    assert not any(kill.kind == "worker" and kill.stage == "start" for kill in kills), "there is none yet"


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
def test_a_kill_comes_so_many_steps_after_the_resume_and_after_the_kill_before(stage, ahead, since, places):
    assert wanted(Kill(0, "rank", 0, stage, ahead, 0.5), START, since) == places


def test_tables_count_kills_and_name_faults(tmp_path):
    kill = {"number": 0, "victim": "rank on left", "stage": "learn", "ended_s": 3.0, "faults": []}
    worker = kill | {"victim": "worker on left", "ended_s": None}
    machine = {"cores": 2, "processor": "a CPU", "commit": "0f3a"}
    shard = machine | {"seed": 0, "runs": 1, "starts": 3, "faults": []}
    write(tmp_path / "kills-0.json", shard | {"kills": [kill, kill | {"ended_s": 5.0}, worker]})
    write(tmp_path / "slow-rank.json", machine | {"case": "slow-rank", "seen": "stopped", "faults": []})
    text = tables(tmp_path)
    assert "3 SIGKILLs in 1 runs and 3 starts, no fault" in text
    assert "| rank on left | 2 | learn | 4.0 | 5.0 |" in text and "| worker on left | 1 | learn | goes on |" in text
    assert "| slow-rank | stopped | equal |" in text
    write(tmp_path / "kills-1.json", shard | {"kills": [kill | {"faults": ["2 lines"]}]})
    assert "4 SIGKILLs in 2 runs and 6 starts, **1 faults**" in tables(tmp_path)


def write(path, found):
    path.write_text(json.dumps(found))
