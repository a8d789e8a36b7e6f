"""Stages: what is timed, what is called on entry, and where a run may be stopped."""

from __future__ import annotations

import subprocess
import sys

import pytest

from capo_fast.errors import Interrupted
from capo_fast.runtime.stages import Stages, cpu_seconds

BUSY = "sum(range(3 * 10**7))"
"""Tens of milliseconds of CPU time on any machine."""


def unstopped() -> None:
    pass


def test_wall_and_cpu_time_are_added_up_by_stage():
    entered, too = [], []
    stages = Stages(unstopped, entered.append, too.append)
    for stage in ("rollout", "learn", "rollout"):
        with stages(stage):
            eval(BUSY)
    lap = stages.lap()
    assert entered == too == ["rollout", "learn", "rollout"]
    assert list(lap.wall) == list(lap.cpu) == ["rollout", "learn"]
    assert all(seconds > 0 for by_stage in lap for seconds in by_stage.values())
    assert stages.lap() == ({}, {})


def test_cpu_time_counts_the_processes_that_were_started():
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", f"{BUSY}; print(); input()"], stdin=-1, stdout=-1)
    child.stdout.readline()
    running = cpu_seconds()
    child.communicate(b"\n")
    assert before < running <= cpu_seconds()


def test_stages_do_not_nest():
    stages = Stages(unstopped)
    with stages("outer"):
        with pytest.raises(RuntimeError, match="stage 'inner' can't start inside stage 'outer'"), stages("inner"):
            pass
        with pytest.raises(RuntimeError, match="a lap can't end inside stage 'outer'"):
            stages.lap()
    assert list(stages.lap().wall) == ["outer"]


def test_a_stage_that_fails_is_timed_and_over():
    stages = Stages(unstopped)
    with pytest.raises(ZeroDivisionError), stages("a"):
        _ = 1 / 0
    with stages("b"):
        pass
    assert list(stages.lap().wall) == ["a", "b"]


def test_a_run_is_stopped_before_a_seam_and_nowhere_else():
    def stop() -> None:
        raise Interrupted

    stages = Stages(stop)
    for stage in ("sync", "verify", "eval", "checkpoint", "export"):
        with stages(stage):
            pass
    for stage in ("rollout", "critique", "learn"):
        with pytest.raises(Interrupted), stages(stage):
            pytest.fail("the stage was entered")
