"""bench.credit without its engine: labels, solutions as rollouts and tables of shards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scripted_engine import ScriptedEngine
from scripted_world import answer_steps, tokenizer

from bench.credit.__main__ import own_folder
from bench.credit.arms import ARMS, GATED
from bench.credit.clock import read_runs, write_page
from bench.credit.crediting import critiqued, judged_by_rule, weights_at
from bench.credit.formats import apart, joined
from bench.credit.given import Labelled, as_sample, given_config
from bench.credit.goal import goal_part
from bench.credit.scores import auc_interval, inner_auc, pooled_auc, sign_agreement
from bench.credit.table import missing_arms, write_table
from bench.credit.world import rollouts_of
from bench.credit.worlds import TINY, WORDS, WORLDS, with_own
from bench.evidence.arms import Plan
from bench.evidence.report import Figures
from capo_fast.errors import ConfigError
from capo_fast.evaluation.labelled import Solution
from capo_fast.loaders import load_critic_template
from capo_fast.records import Critique
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.stream import Traffic
from capo_fast.words.task import structure_of, true_wrong_steps


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_every_arm_of_a_world_is_a_run_s_settings(world):
    assert {world.config(arm.settings, 0).seed for arm in world.arms.values()} == {0}


def test_the_critic_of_words_reads_whole_solutions():
    configs = {name: WORDS.config(arm.settings, 0) for name, arm in WORDS.arms.items()}
    assert {config.critic.reads for config in configs.values()} == {"solution"}
    assert {config.critic.prompt for config in configs.values()} == {"pkg://capo_fast.credit/prompts/words.txt"}
    gate = configs[GATED].critic.gate
    assert (gate.groups, gate.adaptive) == ("any-wrong", True), "what is left of capo-gated"
    assert configs["answer-probability"].credit.answer_lead == "Answer: \\boxed{"


def test_inner_auc_compares_steps_of_the_same_rollout():
    advantages, labels = [[1.0, 1.0], [-1.0, -1.0, -1.0]], [[0, 0], [0, 1, None]]
    assert pooled_auc(advantages, labels) == 5 / 6, "the outcome alone finds the rollouts with wrong steps"
    assert inner_auc(advantages, labels) == 0.5, "but not the wrong step within a rollout"
    assert sign_agreement([[1.0, -2.0, 3.0]], [[0.5, 0.5, 0.0]]) == 0.5


def test_an_interval_of_few_solutions_is_wide():
    few = auc_interval([[1.0, -1.0], [-1.0, 1.0]], [[0, 1], [0, 1]])
    many = auc_interval([[1.0, -1.0], [-1.0, 1.0]] * 50, [[0, 1], [0, 1]] * 50)
    assert few == (0.0, 1.0) and 0.35 < many[0] < 0.5 < many[1] < 0.65
    assert auc_interval([[1.0]], [[0]]) is None
    rows, labels = [[1.0, -1.0]] * 8 + [[-1.0, 1.0]] * 8, [[0, 1]] * 16
    assert auc_interval(rows, labels, together=8) == (0.0, 1.0), "two groups are no sixteen solutions"


def solution(*steps, first=-1, wrong=None):
    return Labelled(Solution("p", "1+1", steps, first, wrong, "all"), "2", True)


def test_steps_after_the_first_wrong_one_have_no_label():
    assert solution("1+1=3", "A:3", "x", first=1).labels == [0, 1, None]
    assert solution("1+1=2", "A:2").labels == [0, 0]
    assert solution("1+1=3", "A:2", first=0, wrong=frozenset({0, 1})).labels == [1, 1]


def test_a_solution_that_can_not_be_a_rollout_is_left_out():
    config = given_config({}, "pkg://capo_fast.tiny/model", 0)
    builder = RequestBuilder(tokenizer(), "", config)
    found = as_sample(builder, solution("1+1=2", "A:2"), 3, True)
    assert found.rollout.steps.texts == ("1+1=2", "A:2") and found.outcome == 1.0
    inside = as_sample(builder, solution("1+1=2\n\n1+1=2", "A:2"), 3, True)
    assert inside.rollout.steps.texts == ("1+1=2\n1+1=2", "A:2"), "a blank line inside a step splits nothing"
    assert as_sample(builder, solution("1+1=2", " \n"), 3, True) is None, "the trainer would find one step"
    assert as_sample(builder, solution("1+1=2", "A:2")._replace(right=None), 3, True) is None


def test_the_table_is_made_from_the_existing_shards(tmp_path):
    arm = {"advantages": [[1.0, -1.0]], "cpu_s": 0.5, "read": 10, "cached": 4, "written": 6}
    shard = {"seed": 100, "part": 0, "outcomes": [1.0], "labels": [[0, 1]], "arms": dict.fromkeys(ARMS, arm)}
    shard |= {"about": {"commit": "0123456789abc", "threads": 1, "cores": 2, "processor": "Xeon"}}
    (tmp_path / "world").mkdir()
    for part in (0, 1):
        (tmp_path / "world" / f"100-{part}.json").write_text(json.dumps(shard | {"part": part}))
    (tmp_path / "words").mkdir()
    of_words = {"labels": [[1, 0]], "arms": dict.fromkeys(set(WORDS.arms) - {"prefix"}, arm)}
    (tmp_path / "words" / "100-0.json").write_text(json.dumps(shard | of_words))
    (tmp_path / "given").mkdir()
    given = {
        "about": {"commit": "ba98" * 10 + "-dirty"},
        "set": "few",
        "model": "m",
        "seed": 0,
        "left_out": 0,
        "labels": [[0, 1]],
        "arms": {"capo-1": arm},
    }
    (tmp_path / "given" / "few-0.json").write_text(json.dumps(given))
    text = write_table(tmp_path)
    assert "| capo-1 | 1.000 [1.00, 1.00] | 1.000 | 10.0 |" in text
    assert "The tiny world: 2 rollouts, 4 steps, 2 of them wrong" in text
    assert "commit 012345678, 1 of 2 cores (Xeon); truth" in text and "seed 0, commit ba98ba98b-dirty;" in text
    tiny, words = text[: text.index("## The world of words")], text[text.index("## The world of words") :]
    assert "| capo-1 | 1.000 [1.00, 1.00] | 1.000 | 1.000 | 1.000 | 10.0 | 4.0 | 6.0 | 0.5000 |" in tiny
    assert "| capo-1 | 0.000 [0.00, 0.00] | 0.000 | 1.000 |" in words and "| steps |" not in words
    assert "of an older commit: prefix." in words, "and nothing of arms that the world never has"
    assert (tmp_path / "credit.md").read_text() == text


def test_solutions_joined_in_one_prompt_are_scored_separately():
    pair = [solution("1+1=3", "A:3").solution, solution("1+1=2", "2+1=3", "A:4").solution]
    assert joined(pair).steps == ("1+1=3", "A:3", "1+1=2", "2+1=3", "A:4")
    found = apart(Critique(False, frozenset({0, 2, 4}), 0), pair)
    assert [sorted(each.wrong_steps) for each in found] == [[0], [0, 2]]
    one = Critique(False, frozenset({0}), 0, unread=frozenset({1}))
    assert apart(one, pair[:1]) == [one]


def test_forms_of_critiques_are_in_the_table(tmp_path):
    found = {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}, "step_precision": None, "step_recall": 1.0}
    found |= {"abstained": 0.25, "read": 20.0, "cached": 4.0, "written": 11.0, "cpu_s": 0.0042}
    shard = {"about": {"commit": "0123"}, "seed": 100, "solutions": 400, "forms": {"single steps": found}}
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "100.json").write_text(json.dumps(shard))
    expected = ["0.500 [0.400, 0.600]", "–", "1.000", "25.0%", "20.0", "4.0", "11.0", "4.2"]
    assert cells_of(write_table(tmp_path))["single steps"] == expected


def made_run(arm, seed, rates, cpu, tokens):
    about = {"arm": arm, "seed": seed, "plan": {"steps": 4, "prompts": 1, "n": 1, "every": 1, "problems": 9}}
    curve = [[step, rate] for step, rate in enumerate(rates)]
    stages = {"stages": {"critique": 0.5}, "critique_tokens": [tokens] * 4, "critique_read": [3 * tokens] * 4}
    about |= {"about": {"commit": "0123"}, "profile_tokens": [5] * 4}
    times = {"cpu": [0.5] * 4, "cpu_all": [cpu] * 4, "wall": [cpu] * 4}  # the difference is spent in verifier workers
    return about | {"rollouts": [1, 2, 3, 4], "curve": curve} | times | stages


def cells_of(text):
    """The other cells of the page's table rows, by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| -")]
    return {first: others for first, *others in ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)}


def test_learning_per_cpu_second_is_compared_by_seed(tmp_path):
    arms = {  # rates at steps 0 to 4; CPU seconds and critique tokens per step
        "outcome": ([0.0, 0.25, 0.5, 0.75, 1.0], 1.0, 0),
        "capo-1": ([0.0, 0.5, 1.0, 1.0, 1.0], 2.0, 100),
        "oracle": ([0.0, 0.5, 1.0, 1.0, 1.0], 1.0, 0),
        "capo-gated": ([0.0, 0.5, 1.0, 1.0, 1.0], 1.0, 10),
    }
    (tmp_path / "runs").mkdir()
    for arm, figures in arms.items():
        for seed in (1, 100, 101):
            (tmp_path / "runs" / f"{arm}-{seed}.json").write_text(json.dumps(made_run(arm, seed, *figures)))
    text = write_page(tmp_path)
    rows = cells_of(text)
    assert rows["capo-1"][3:6] == ["+0.250 ± 0.000", "+0.000 ± 0.000", "0%"], "twice as fast, at twice the price"
    assert rows["capo-gated"][3:6] == ["+0.250 ± 0.000", "+0.250 ± 0.000", "100%"]
    assert rows["capo-gated"][0] == "2", "a tuning seed is not reported"
    assert rows["capo-gated"][-5:] == ["40 ± 0", "10.0%", "120 ± 0", "10.0%", "20 ± 0"]
    assert rows["the same, less 50% of the oracle's gain"][1:] == [
        *("+0.125 [+0.125, +0.125]", "100.0% [100.0%, 100.0%]", "met")
    ]
    assert (tmp_path / "clock.png").stat().st_size > 0


def rows_of_goal(gated, tokens=(10, 10, 10)):
    """The goal table's cells. gated, tokens: by seed, capo-gated's pass@1 above the oracle's, and its tokens."""
    rates = {"outcome": (0.0, 0.2), "capo-1": (0.0, 0.4), "oracle": (0.0, 0.4)}
    results = {
        arm: {seed: made_run(arm, seed, np.linspace(*of, 5), 1.0, 100) for seed in (100, 101, 102)}
        for arm, of in rates.items()
    }
    made = zip((100, 101, 102), gated, tokens, strict=True)
    results[GATED] = {s: made_run(GATED, s, np.linspace(0.0, 0.4 + more, 5), 1.0, n) for s, more, n in made}
    plan = Plan(**results[GATED][100]["plan"])
    return list(cells_of(goal_part(results, Figures(plan, "cpu_all"), 4.0)).values())[1:]


def test_a_goal_is_met_if_the_whole_interval_meets_it():
    gain, half, area, written, read = rows_of_goal((0.0, 0.0, 0.0))
    assert [each[-1] for each in (gain, half, area, written, read)] == ["met"] * 5
    assert gain[1] == "+0.100 [+0.100, +0.100]" and half[1] == "+0.050 [+0.050, +0.050]"
    gain, half, area, *_ = rows_of_goal((0.1, -0.1, 0.0))
    assert gain[1] == "+0.100 [-0.024, +0.224]" and gain[-1] == half[-1] == area[-1] == "not met", "only the mean is"
    assert rows_of_goal((-0.05,) * 3)[2][-1] == "not met", "0.025 of area lost by rollouts"
    written, read = rows_of_goal((0.0,) * 3, (20, 16, 18))[3:]
    assert written[1:] == ["-12 [-32, +8]", "18.0% [16.0%, 20.0%]", "not met"] and read[-1] == "not met"


@pytest.mark.parametrize(("key", "value"), [("about", {"commit": "4567"}), ("plan", {"steps": 8})])
def test_a_page_has_runs_of_one_plan_and_one_commit(tmp_path, key, value):
    made = made_run("outcome", 100, [0.0, 0.25, 0.5, 0.75, 1.0], 1.0, 0)
    (tmp_path / "100.json").write_text(json.dumps(made))
    (tmp_path / "101.json").write_text(json.dumps(made | {"seed": 101, key: value}))
    with pytest.raises(ValueError, match="found runs of 2"):
        read_runs(tmp_path)


def test_truth_is_by_the_rule_of_the_world():
    structure = structure_of([["*", 3, 4], ["+", 12, "#0"]])
    builder = RequestBuilder(tokenizer(), "", given_config({}, "pkg://capo_fast.tiny/model", 0))
    given = as_sample(builder, solution("3*4=11", "12+11=23"), 3, True)
    rule = lambda problem, steps: true_wrong_steps(structure, steps) if problem == "1+1" else None  # noqa: E731
    (judged,), traffic = judged_by_rule(rule, [given])
    assert judged.step_wrong == (1.0, 0.0) and traffic == Traffic(), "an error carried forward is not wrong again"
    assert rollouts_of([given], rule) == {"outcomes": [1.0], "labels": [[1, 0]]}


class RecordingEngine(ScriptedEngine):
    """Records the model whose weights it has at each request."""

    def __init__(self):
        super().__init__(answer_steps)
        self.loaded, self.requests = "policy", set()

    def load(self, weights):
        norm = dict(weights)["model.norm.weight"]
        own = {
            name: dict(weights_at(f"pkg://capo_fast.tiny/{name}"))["model.norm.weight"] for name in ("model", "critic")
        }
        self.loaded = next(name for name, of in own.items() if torch.equal(norm, of))

    def add(self, request):
        self.requests.add((self.loaded, request.id.split("-")[0]))
        super().add(request)


def test_a_critic_of_another_model_is_loaded_only_for_its_critiques():
    config = TINY.config(ARMS["steps"].settings, 0)
    builder, engine = RequestBuilder(tokenizer(), load_critic_template(config), config), RecordingEngine()
    given = as_sample(builder, solution("1+1=3", "A:3"), 3, True)
    (judged,), _ = critiqued(engine, builder, [given])
    assert judged.step_wrong == (1.0, 0.0)
    assert (engine.requests, engine.loaded) == ({("critic", "critique")}, "model")


def test_the_table_names_arms_that_a_shard_lacks():
    assert missing_arms([{"arms": dict.fromkeys(ARMS)}], ARMS) == ""
    assert "capo-gated" in missing_arms([{"arms": {"oracle": {}}}], ARMS)


def test_an_estimator_of_the_user_s_has_a_folder_by_its_text_and_few_others_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_estimator.py").write_text("def late(groups):\n    pass\n")
    world, before = with_own(TINY, "my_estimator:late", "none"), own_folder("my_estimator:late", "none")
    assert list(world.arms) == ["oracle", "outcome", "capo-1", "my_estimator:late"]
    assert world.config(world.arms["my_estimator:late"].settings, 0).credit.fn == "my_estimator:late"
    (tmp_path / "my_estimator.py").write_text("def late(groups):\n    return 1\n")
    assert before.startswith("my_estimator.late-") and own_folder("my_estimator:late", "none") != before
    with pytest.raises(ConfigError, match=r"credit\.fn: no_such:fn can't be loaded"):
        own_folder("no_such:fn", "none")
