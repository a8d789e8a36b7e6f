"""What end_to_end.py makes of its arms' seconds. The arms themselves run in CI's short form of the command."""

from __future__ import annotations

import pytest

from bench.trainer.end_to_end import ARMS, arm_config, summarise, table
from bench.trainer.laps import Laps


def arm(*learn: float, rest: float = 1.0, **more: float) -> dict:
    """A round whose steps take these seconds to learn."""
    steps = [{"seconds": {"learn": s, "rest": rest, **more}, "rollouts": 4, "tokens": 40} for s in learn]
    return {"steps": steps, "outside": 10.0}


RESULTS = {
    "grpo": [arm(90, 1, 3, 2), arm(90, 4, 4, 4), arm(90, 3, 3, 3)],
    "capo": [arm(90, 4, 4, 4, critique=5.0), arm(90, 4, 4, 4, critique=7.0), arm(90, 3, 3, 3, critique=6.0)],
}


def test_medians_over_steps_without_the_first_then_over_rounds():
    grpo = summarise(RESULTS)["grpo"]
    assert grpo["learn, ms"] == [3000, 2000, 4000]
    assert grpo["step, ms"] == [4000, 3000, 5000]
    assert grpo["tokens/s"] == pytest.approx([10, 8, 40 / 3])
    assert grpo["first step, ms"] == [91000, 91000, 91000]
    assert "critique, ms" not in grpo


def test_ratios_are_taken_within_a_round():
    capo = summarise(RESULTS)["capo"]
    assert capo["learn, ratio"] == [1, 1, 2]
    assert capo["critique, ms"] == [6000, 5000, 7000]
    assert "critique, ratio" not in capo
    assert capo["step, ratio"] == pytest.approx([2.5, 12 / 5, 10 / 3])


def test_the_table_has_a_column_an_arm_and_a_dash_for_a_stage_it_lacks():
    rows = {line.split(" | ")[0]: line for line in table(summarise(RESULTS)).splitlines()}
    assert rows["| critique, ms"] == "| critique, ms | - | 6000 [5000, 7000] |"
    assert rows["| learn, ratio"] == "| learn, ratio | 1.00 | 1.00 [1.00, 2.00] |"
    assert rows["| sync, ms"] == "| sync, ms | - | - |"


def test_an_inner_stage_stops_the_outer_ones_time():
    ticks = iter([0, 1, 4, 6, 13, 20])
    laps = Laps(clock=lambda: next(ticks))
    with laps("learn"), laps("rollout"):
        pass
    assert laps.lap() == {"rest": 1 + 7, "learn": 3 + 7, "rollout": 2}


@pytest.mark.parametrize("name", ["capo", "grpo", "eager"])
def test_the_arms_are_the_default_run_without_evaluation(name, tmp_path):
    config = arm_config(5, tmp_path, ARMS[name][1:])
    assert (config.rollout.prompts, config.rollout.n, config.train.minibatches) == (16, 8, 2)
    assert (config.eval.path, config.checkpoint.every, config.train.steps) == (None, 0, 5)
    assert config.algorithm == ("capo" if name == "capo" else "grpo")
