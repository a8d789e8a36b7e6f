"""Stages: their times, the calls on entry, and the points at which a run may stop."""

from __future__ import annotations

import subprocess
import sys

import pytest

from capo_fast.errors import Interrupted
from capo_fast.runtime.stages import Stages, added

BUSY = "sum(range(5 * 10**6))"
"""Tens of milliseconds of CPU time on any machine."""


class Signal:
    """A stop signal; `given` if it has arrived."""

    def __init__(self, given: bool = False) -> None:
        self.given = given

    def check(self) -> None:
        if self.given:
            raise Interrupted


class Clock:
    """A deadline that records the stages for which it is started."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def start(self, stage: str) -> None:
        self.stages.append(stage)


def made(*on_entry, given: bool = False) -> Stages:
    return Stages(Signal(given), Clock(), *on_entry)


def test_wall_and_cpu_time_are_added_up_by_stage():
    entered = []
    stages = made(entered.append)
    for stage in ("rollout", "learn", "rollout"):
        with stages(stage):
            eval(BUSY)
    lap = stages.lap()
    assert entered == stages.deadline.stages == ["rollout", "learn", "rollout"]
    assert list(lap.wall) == list(lap.cpu) == ["rollout", "learn"]
    assert all(seconds > 0 for by_stage in lap for seconds in by_stage.values())
    assert stages.lap() == ({}, {})


def test_cpu_time_of_a_background_thread_belongs_to_its_own_stage():
    stages, clocks = made(), iter([0.0, 40.0, 45.0, 45.0, 50.0])
    stages.background["checkpoint"] = lambda: next(clocks)
    with stages("learn"):
        eval(BUSY)
    with stages("rollout"):
        pass
    lap = stages.lap()
    assert lap.cpu["checkpoint"] == 50.0 and lap.wall["checkpoint"] == 0.0, "includes time between stages"
    assert -40.0 < lap.cpu["learn"] < -30.0, "the process's time minus the thread's"
    assert list(lap.wall) == list(lap.cpu)


def test_cpu_time_counts_the_processes_that_were_started():
    """A process started in one stage and ended in another counts in both."""
    stages = made()
    with stages("starts"):
        child = subprocess.Popen([sys.executable, "-c", f"{BUSY}; print(); input(); {BUSY}"], stdin=-1, stdout=-1)
        child.stdout.readline()
    with stages("waits"):
        pass
    with stages("ends"):
        child.communicate(b"\n")
    cpu = stages.lap().cpu
    assert cpu["starts"] > cpu["waits"] and cpu["ends"] > cpu["waits"] >= 0


def test_laps_with_different_stages_add_up():
    assert added({"learn": 1.0, "checkpoint": 0.5}, {"learn": 2.0}) == {"learn": 3.0, "checkpoint": 0.5}


def test_stages_do_not_nest():
    stages = made()
    with stages("outer"):
        with pytest.raises(RuntimeError, match="stage 'inner' can't start inside stage 'outer'"), stages("inner"):
            pass
        with pytest.raises(RuntimeError, match="a lap can't end inside stage 'outer'"):
            stages.lap()
    assert list(stages.lap().wall) == ["outer"]


def test_a_stage_that_fails_is_timed_and_ended():
    stages = made()
    with pytest.raises(ZeroDivisionError), stages("a"):
        _ = 1 / 0
    with stages("b"):
        pass
    assert list(stages.lap().wall) == ["a", "b"]


def test_a_run_stops_only_at_a_seam():
    stages = made(given=True)
    with stages("verify"):
        pass
    with pytest.raises(Interrupted), stages("learn", seam=True):
        pytest.fail("the stage was entered")
    assert list(stages.lap().wall) == ["verify", "learn"], "the wait for the other ranks is timed"
