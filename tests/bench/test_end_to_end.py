"""bench.end_to_end: the settings of its arms, its medians and ratios, its files. Its short form in CI runs the arms."""

from __future__ import annotations

import json
import sys

import pytest

import bench.end_to_end.__main__ as command
from bench.end_to_end.arms import ARMS, arm_config, common_config
from bench.end_to_end.figures import best_of_trl, figures, summarise, table
from bench.end_to_end.laps import Laps
from bench.end_to_end.live import live_reward, live_share
from capo_fast.config.paths import resolve_model
from capo_fast.errors import ConfigError
from capo_fast.loaders import load_prompts, load_reward_functions
from capo_fast.pretrained import load_tokenizer


def arm(*learn: float, rest: float = 1.0, **more: float) -> dict:
    """A round with these learning times per step, seconds."""
    steps = [{"seconds": {"learn": s, "rest": rest, **more}, "rollouts": 4, "tokens": 40} for s in learn]
    return {"steps": steps, "outside": 10.0}


RESULTS = {
    "trl": [arm(90, 1, 3, 2), arm(90, 4, 4, 4), arm(90, 3, 3, 3)],
    "trl-bf16": [arm(90, 1, 1, 1), arm(90, 1, 1, 1), arm(90, 7, 7, 7)],
    "trl+capo": [arm(90, 0.5, 0.5, 0.5)] * 3,
    "capo": [arm(90, 4, 4, 4, critique=5.0), arm(90, 4, 4, 4, critique=7.0), arm(90, 3, 3, 3, critique=6.0)],
}


def test_medians_over_steps_without_the_first_then_over_rounds():
    trl = summarise(RESULTS)["trl"]
    assert trl["learn, ms"] == [3000, 2000, 4000]
    assert trl["step, ms"] == [4000, 3000, 5000]
    assert trl["tokens/s"] == pytest.approx([10, 8, 40 / 3])
    assert trl["first step, ms"] == [91000, 91000, 91000]
    assert "critique, ms" not in trl


def test_ratios_are_within_a_round_to_trl_and_to_the_best_of_its_arms():
    assert best_of_trl({name: [figures(each) for each in rounds] for name, rounds in RESULTS.items()}) == "trl-bf16"
    capo = summarise(RESULTS)["capo"]
    assert capo["learn, ratio"] == [1, 1, 2]
    assert capo["critique, ms"] == [6000, 5000, 7000]
    assert "critique, ratio" not in capo
    assert capo["step, ratio"] == pytest.approx([2.5, 12 / 5, 10 / 3])
    assert capo["step, ratio to the best"] == pytest.approx([5, 10 / 8, 6])


def test_the_table_has_a_column_per_arm_and_a_dash_for_a_missing_stage():
    summary = {name: each for name, each in summarise(RESULTS).items() if name in ("trl", "capo")}
    rows = {line.split(" | ")[0]: line for line in table(summary).splitlines()}
    assert rows["| critique, ms"] == "| critique, ms | - | 6000 [5000, 7000] |"
    assert rows["| learn, ratio"] == "| learn, ratio | 1.00 | 1.00 [1.00, 2.00] |"
    assert "| sync, ms" not in rows, "no arm has this stage"


def test_an_inner_stage_pauses_the_outer_ones_time():
    ticks = iter([0, 1, 4, 6, 13, 20])
    laps = Laps(clock=lambda: next(ticks))
    with laps("learn"), laps("rollout"):
        pass
    assert laps.lap() == {"rest": 1 + 7, "learn": 3 + 7, "rollout": 2}


@pytest.mark.parametrize("name", ["capo", "capo-critic", "capo-bf16"])
def test_the_arms_have_the_given_settings_without_evaluation(name, tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps(ARMS[name].settings))
    words = ["--config", "pkg://capo_fast.configs/tiny.yaml", "--config", str(tmp_path / "config.yaml")]
    config = arm_config(tmp_path, words)
    assert (config.rollout.prompts, config.rollout.n, config.train.minibatches) == (16, 8, 2)
    assert (config.eval.path, config.checkpoint.every) == (None, 0)
    assert config.algorithm == ("capo" if name == "capo-critic" else "grpo")
    assert config.engine.dtype == ("bfloat16" if name == "capo-bf16" else "float32")


def test_a_setting_that_trls_arm_would_ignore_is_refused():
    with pytest.raises(ConfigError, match=r"lora.rank: found 8, wanted 0: TRL's arm does not support it"):
        common_config(["--lora.rank", "8"])


@pytest.mark.parametrize(("share", "live"), [(0.5, [True, True, False, False]), (0.0, [False] * 4), (1.0, [True] * 4)])
def test_a_set_share_of_each_steps_groups_is_mixed(share, live, tmp_path):
    """Per step as drawn by the run; the order of the problems does not change."""
    sizes = {"rollout.prompts": 4, "rollout.n": 3, "train.steps": 3}
    before = common_config(["--algorithm", "grpo"], sizes)
    config = common_config(["--algorithm", "grpo"], sizes | live_share(before, share, tmp_path))
    tokenizer, functions = load_tokenizer(resolve_model(config.model.path)), load_reward_functions(config.reward)
    drawn, _ = load_prompts(config, tokenizer, functions).take(0, 12)
    assert [each.columns["live"] for each in drawn] == live * 3
    assert [each.problem for each in drawn] == [each.problem for each in load_prompts(before, tokenizer).take(0, 12)[0]]
    rewards = live_reward([""] * 6, [""] * 6, id=["0"] * 3 + ["1"] * 3, live=[True] * 3 + [False] * 3)
    assert rewards == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_existing_shards_are_kept_and_missing_ones_are_run(tmp_path, monkeypatch, capsys):
    ran = []

    def run_shard(name, case):
        ran.append(name)
        return arm(9, 1)

    def run(*words):
        ran.clear()
        monkeypatch.setattr(
            sys, "argv", ["end_to_end", "--rounds", "2", "--arms", "capo", "--out", str(tmp_path), *words]
        )
        command.main()
        return list(ran)

    monkeypatch.setattr(command, "run_shard", run_shard)
    assert run("--shards", "1") == ["capo"]
    assert capsys.readouterr().out == "", "a table needs a round of each arm"
    assert run("--shards", "2") == ["trl", "trl"], "the rounds begin with different arms"
    assert run() == ["capo"]
    assert run() == []
    found = json.loads((tmp_path / "end_to_end-tiny.json").read_text())
    assert (found["best"], found["work"]["prompts"], found["summary"]["capo"]["step, ms"]) == ("trl", 16, [2000] * 3)
    assert str(tmp_path) not in json.dumps(found), "committed figures contain no machine path"
    assert "| step, ratio | 1.00 | 1.00 |" in (tmp_path / "end_to_end-tiny.md").read_text()
    assert run("--live", "0.5") == ["capo", "trl", "trl", "capo"], "each case has its own file"
    with pytest.raises(SystemExit, match=r"tiny\.json: work: found .*: its shards are of another measurement"):
        run("--rollout.n", "4")


def test_unequal_work_stops_the_command():
    command.check_work("capo", arm(1, 1), None)
    command.check_work("capo", arm(1, 1), 10)
    with pytest.raises(SystemExit, match="capo: found 40 tokens, wanted 4 rollouts of 11"):
        command.check_work("capo", arm(1, 1), 11)
