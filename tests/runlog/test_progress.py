"""Progress of a run: its best step, its seconds, its summary, and JSON without loss."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from capo_fast.config.schema import Config
from capo_fast.records import Prompt, Rollout, StepSpans
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.runlog.progress import Progress
from capo_fast.runtime.files import RecordError


def noted(*rates):
    """Progress after evaluations at steps 0, 1, ...; None: none there."""
    progress = Progress()
    for step, rate in enumerate(rates):
        progress.note(step, None if rate is None else PassRate(rate, 0.1, 8, 0))
    return progress


def reread(progress):
    return Progress.read(json.loads(json.dumps(asdict(progress))), progress.step, "step_000001")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cursor": "12"}, "cursor: found '12': Input should be a valid integer"),
        ({"step": -5}, "step: found -5: "),
        ({"step": 99}, "found step 99, best step None"),
        ({"seconds": [1]}, "seconds: found "),
        ({"speed": 1}, "speed: found 1: "),
        ({"best_step": 3}, "found step 1, best step 3"),
        ([], "found \\[\\]: "),
    ],
)
def test_what_is_no_progress_of_that_step_is_refused(change, said):
    value = asdict(Progress(step=1)) | change if isinstance(change, dict) else change
    with pytest.raises(RecordError, match=f"^step_000001, progress.*{said}"):
        Progress.read(value, 1, "step_000001")


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ((), None),
        ((None, None), None),
        ((0.0,), 0),
        ((0.3, 0.5, 0.4), 1),
        ((0.3, 0.5, 0.5), 1),
        ((0.3, None, 0.4), 2),
        ((math.nan,), None),
        ((math.nan, 0.0), 1),
        ((math.nan, 0.2, math.nan, 0.1), 1),
    ],
)
def test_the_best_step_is_the_first_with_the_highest_rate(rates, best):
    assert noted(*rates).best_step == best


def test_evaluations_are_kept_by_step():
    progress = noted(0.25, None, 0.5)
    assert progress.evaluations == {
        "0": {"rate": 0.25, "stderr": 0.1, "problems": 8, "timeouts": 0},
        "2": {"rate": 0.5, "stderr": 0.1, "problems": 8, "timeouts": 0},
    }


def test_seconds_add_up_by_stage():
    progress = Progress()
    progress.add_seconds({"rollout": 1.5, "learn": 0.5})
    progress.add_seconds({"rollout": 2.0, "eval": 0.25})
    assert progress.seconds == {"rollout": 3.5, "learn": 0.5, "eval": 0.25}


def test_two_runs_share_no_tables():
    noted(0.5).add_seconds({"learn": 1.0})
    assert Progress().seconds == Progress().evaluations == {}


def test_the_summary_compares_before_with_after():
    progress = noted(0.25, 0.75, 0.5)
    progress.step, progress.wall_seconds = 2, 60.0
    progress.add_seconds({"learn": 4.0})
    assert progress.summary(replace(Config(), algorithm="grpo", seed=3)) == {
        "algorithm": "grpo",
        "seed": 3,
        "steps": 2,
        "pass@1_before": 0.25,
        "pass@1_before_stderr": 0.1,
        "pass@1_after": 0.5,
        "pass@1_after_stderr": 0.1,
        "heldout_problems": 8,
        "best_step": 1,
        "wall_seconds": 60.0,
        "seconds_by_stage": {"learn": 4.0},
    }


def test_a_run_without_held_out_problems_has_the_same_keys():
    summary = Progress(step=2).summary(Config())
    assert summary.keys() == noted(0.5).summary(Config()).keys()
    rates = ("pass@1_before", "pass@1_before_stderr", "pass@1_after", "pass@1_after_stderr", "heldout_problems")
    assert [summary[key] for key in (*rates, "best_step")] == [None] * 6


def test_json_brings_everything_back():
    progress = noted(0.1, 1 / 3)
    progress.step, progress.cursor, progress.wall_seconds = 1, 48, 0.1 + 0.2
    progress.add_seconds({"learn": 1 / 7})
    again = reread(progress)
    assert again == progress
    again.note(2, PassRate(0.2, 0.1, 8, 0))
    assert again.best_step == 1
    again.note(3, PassRate(0.5, 0.1, 8, 0))
    assert again.best_step == 3


def test_json_brings_back_a_rate_that_is_none():
    again = reread(noted(math.nan))
    assert math.isnan(again.evaluations["0"]["rate"])
    again.note(1, PassRate(0.0, 0.1, 8, 0))
    assert again.best_step == 1


def test_lengths_are_those_of_the_last_time():
    def rollouts(name, *lengths):
        prompt = Prompt(name, "", "", None, ())
        return [Rollout(prompt, 0, i, 0, (5,) * n, (), "", True, StepSpans((), ())) for i, n in enumerate(lengths)]

    progress = Progress()
    progress.note_lengths([*rollouts("a", 2, 4), *rollouts("b", 10)])
    progress.note_lengths(rollouts("a", 7, 8))
    assert reread(progress).lengths == {"a": 7.5, "b": 10.0}
