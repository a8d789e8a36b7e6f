"""Progress of a run: its best step, its seconds, its summary, and its lossless JSON form."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from capo_fast.config.schema import Config
from capo_fast.errors import CapoError
from capo_fast.policy.manifest import read_json, write_json
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.runlog.progress import Progress


def noted(*rates):
    """Progress after evaluations at steps 0, 1, ...; None: no evaluation at that step."""
    progress = Progress()
    for step, rate in enumerate(rates):
        progress.note(step, None if rate is None else PassRate(rate, 0.1, 8, 0))
    return progress


def reread(progress, folder):
    write_json(folder / "progress.json", "progress", asdict(progress))
    return read_json(folder / "progress.json", Progress)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cursor": "12"}, "cursor: found '12': Input should be a valid integer"),
        ({"step": -5}, "step: found -5: "),
        ({"step": 99}, "found the progress of step 99, with best step None"),
        ({"seconds": [1]}, "seconds: found "),
        ({"speed": 1}, "speed: found 1: "),
        ({"best_step": 3}, "found the progress of step 1, with best step 3"),
        ([], "found \\[\\]: "),
    ],
)
def test_the_progress_of_another_step_is_refused(change, message, tmp_path):
    value = asdict(Progress(step=1)) | change if isinstance(change, dict) else change
    (path := tmp_path / "progress.json").write_text(json.dumps(value))
    with pytest.raises(CapoError, match=f"^{path}: .*{message}"):
        read_json(path, Progress).check(1, path)


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
        "evaluated": "1 sample, temperature 0, rule verifier",
        "best_step": 1,
        "wall_seconds": 60.0,
        "seconds_by_stage": {"learn": 4.0},
    }


def test_a_run_without_held_out_problems_has_the_same_keys():
    summary = Progress(step=2).summary(Config())
    assert summary.keys() == noted(0.5).summary(Config()).keys()
    rates = ("pass@1_before", "pass@1_before_stderr", "pass@1_after", "pass@1_after_stderr", "heldout_problems")
    assert [summary[key] for key in (*rates, "best_step")] == [None] * 6


def test_json_round_trips_all_fields(tmp_path):
    progress = noted(0.1, 1 / 3)
    progress.step, progress.cursor, progress.wall_seconds = 1, 48, 0.1 + 0.2
    progress.add_seconds({"learn": 1 / 7})
    again = reread(progress, tmp_path)
    assert again == progress
    again.note(2, PassRate(0.2, 0.1, 8, 0))
    assert again.best_step == 1
    again.note(3, PassRate(0.5, 0.1, 8, 0))
    assert again.best_step == 3


def test_json_round_trips_a_rate_of_none(tmp_path):
    again = reread(noted(math.nan), tmp_path)
    assert math.isnan(again.evaluations["0"]["rate"])
    again.note(1, PassRate(0.0, 0.1, 8, 0))
    assert again.best_step == 1


def test_lengths_are_from_the_latest_step_of_a_problem(tmp_path):
    progress = Progress()
    progress.note_lengths([("a", 2), ("a", 4), ("b", 10)])
    progress.note_lengths([("a", 7), ("a", 8)])
    assert reread(progress, tmp_path).lengths == {"a": 7.5, "b": 10.0}
