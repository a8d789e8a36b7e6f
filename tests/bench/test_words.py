"""bench.words without its engine: the rule as critic, the arms, the kept adapter, and the page."""

from __future__ import annotations

import json
from random import Random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.evidence.arms import Plan
from bench.evidence.oracle import OracleCritic
from bench.words import base, critics, labelled
from bench.words.arms import ARMS, PLAN, arm_config
from bench.words.base import CONFIG, WEIGHTS, keep_adapter, merge_base
from bench.words.places import Places
from bench.words.shards import oracle_answer, rule_of, run_shard
from bench.words.tables import write_tables
from capo_fast.credit.critic import load_template, parse_critique, render_critique_prompt
from capo_fast.evaluation.labelled import load_solutions
from capo_fast.records import Request
from capo_fast.words.files import Sizes, write_files
from capo_fast.words.planted import plant_errors
from capo_fast.words.problems import draw_problem
from capo_fast.words.stories import STORIES


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "runs", tmp_path / "results")


def test_the_rule_answers_a_run_s_critique_requests_without_an_error(places):
    write_files(places.data, 0, Sizes(problems=40, heldout=4, sft=2))
    rule, template = rule_of(places), load_template("words")
    critic, rng = OracleCritic(None, lambda request: oracle_answer(rule, request)), Random(0)
    problems = [json.loads(line) for line in (places.data / "train.jsonl").open()]
    solutions = [plant_errors(rng, draw_problem(rng, STORIES, 3))[0] for _ in problems]  # of other problems, so wrong
    solutions[::2] = [row["solution"].split("\n\n") for row in problems[::2]]
    for i, (row, steps) in enumerate(zip(problems, solutions, strict=True)):
        message = render_critique_prompt(template, row["problem"], [f"{step} " for step in steps])
        critic.add(Request(f"critique-0-{i}-0-0", (1,), 0, 1.0, 1.0, -1, 9, message=message))
    for answer, row, steps in zip(critic.step(), problems, solutions, strict=True):
        found = parse_critique(answer.text, len(steps), answer.finished)
        assert not found.abstained and found.wrong_steps == rule(row["problem"], steps)
    assert rule(problems[0]["problem"], solutions[0]) == frozenset()
    assert rule(problems[1]["problem"], solutions[1])


def test_arms_differ_only_in_their_credit(places):
    configs = {arm: arm_config(places, arm, 100, PLAN) for arm in ARMS}
    assert {config.train.steps for config in configs.values()} == {24}
    assert [configs[arm].credit.process for arm in ("grpo", "prefix", "capo", "oracle")] == [
        "none", "prefix", "steps", "steps"
    ]  # fmt: skip
    shared = {
        (c.loss.clip_high, c.loss.kl_coef, c.loss.aggregation, c.train.lr, c.train.epochs) for c in configs.values()
    }
    assert len(shared) == 1


def test_the_kept_adapter_is_bfloat16_and_names_no_folder(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    save_file({"a.lora_A.weight": torch.full((2, 3), 0.1)}, source / WEIGHTS)
    (source / CONFIG).write_text(json.dumps({"r": 2, "base_model_name_or_path": str(source)}))
    keep_adapter(source, tmp_path / "kept")
    weight = load_file(tmp_path / "kept" / WEIGHTS)["a.lora_A.weight"]
    assert weight.dtype == torch.bfloat16 and weight.shape == (2, 3)
    assert str(tmp_path) not in (tmp_path / "kept" / CONFIG).read_text()


def test_the_base_is_merged_again_after_its_adapter_changes(places, monkeypatch):
    merged = []
    monkeypatch.setattr(base, "save_merged", lambda places, out: (merged.append(out), out.mkdir(parents=True)))
    places.pretrained.mkdir(parents=True)
    (places.pretrained / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"has no adapter; make it with: python -m bench.words base"):
        merge_base(places)
    places.adapter.mkdir(parents=True)
    for weights in ("a", "a", "b"):
        (places.adapter / WEIGHTS).write_text(weights)
        merge_base(places)
    assert len(merged) == 2


SOLUTIONS = {
    "steps_mrgsm8k_partial.jsonl": "all",
    "steps_mathcheck_gsm.jsonl": "all",
    "steps_bigbench_mistake.jsonl": "multistep_arithmetic",
}


@pytest.fixture
def labels(tmp_path):
    """A folder of labelled solutions; every fourth row of a set is of another subset."""
    for name, subset in SOLUTIONS.items():
        rows = [
            {"id": f"{name}-{k}", "problem": f"{name} {k}", "steps": ["a", "b"], "first_wrong_step": k % 3 - 1}
            | {"subset": subset if k % 4 else "other"}
            for k in range(40)
        ]
        labelled.write_rows(tmp_path / "labels" / name, rows)
    return tmp_path / "labels"


def test_a_critic_is_scored_on_the_rows_that_its_fine_tuning_holds_out(places, labels, monkeypatch):
    called = []
    monkeypatch.setattr(
        labelled.subprocess, "run", lambda command: called.append(command) or SimpleNamespace(returncode=0)
    )
    with pytest.raises(SystemExit):
        labelled.tune_critic(places, 5, labels)
    assert f"--eval.path={places.labelled / 'tests.jsonl'}" in called[0]
    held = {json.loads(line)["id"] for line in (places.labelled / "tests.jsonl").open()}
    sets = [str(path) for path in labelled.outside_files(places, labels)]
    scored = load_solutions(sets, None, 5, 0)
    assert held == {each.id for found in scored.values() for each in found} and len(held) == 15
    assert sum(1 for _ in (places.labelled / "all.jsonl").open()) == 40 + 40 + 30


def test_critics_are_scored_once(places, monkeypatch):
    scored = []
    monkeypatch.setattr(critics, "score", lambda places, critic, *_: scored.append(critic.model) or {})
    critics.score_critics(places, 5, None, {})
    critics.score_critics(places, 5, None, {"other": places.runs / "other"})
    assert scored == [places.pretrained, places.pretrained, places.base, places.runs / "other"]
    with pytest.raises(SystemExit, match=r"critics\.json has 5 rows per set, found --limit 6"):
        critics.score_critics(places, 6, None, {})


def made_shard(plan, curve, cpu):
    drawn = [64 * (k + 1) for k in range(plan.steps)]
    rule = {"right": 10, "right_unsound": 2, "judged_wrong": 4, "named": 4, "named_wrong": 3}
    return {
        "plan": vars(plan),
        "rollouts": drawn,
        "curve": [[0, curve[0]], *([drawn[k], rate] for k, rate in zip((5, 11, 17, 23), curve[1:], strict=True))],
        "wall": [2.0] * plan.steps,
        "cpu": [cpu] * plan.steps,
        "critique_tokens": [100] * plan.steps,
        "response_tokens": [40.0 + k for k in range(plan.steps)],
        "stages": dict.fromkeys(("sync", "rollout", "critique", "verify", "learn"), 0.5),
        "by_rule": [rule] * plan.steps,
        "timeouts": 0,
        "solved": {"forms": {"metrics": {"pass@1": {"value": curve[-1]}}}},
    }


def test_the_page_is_made_from_the_existing_shards(places, capsys):
    assert "grpo 0 of 3" in write_tables(places)
    shards = {("grpo", 100): (0.4, 1.0), ("capo", 100): (0.6, 2.0), ("capo", 7): (0.9, 1.0)}
    for (arm, seed), (end, cpu) in shards.items():
        path = places.shard(arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made_shard(PLAN, [0.2, 0.2, 0.2, 0.2, end], cpu)))
    page = write_tables(places)
    assert "grpo 2 of 3" not in page and "grpo 1 of 3, prefix 0 of 3, capo 1 of 3" in page
    assert "+0.200" in page and "0.900" not in page  # seed 7 is a tuning seed
    assert "| capo | 0.200 | -0.025 |" in page  # at equal CPU time capo has half of grpo's steps
    assert (places.results / "words.png").stat().st_size > 1000
    run_shard(places, "grpo", 100, PLAN, None)  # exists: nothing is started
    assert "exists" in capsys.readouterr().out
    places.shard("prefix", 101).write_text(json.dumps(made_shard(Plan(steps=24), [0.2] * 5, 1.0)))
    with pytest.raises(ValueError, match="2 plans"):
        write_tables(places)
