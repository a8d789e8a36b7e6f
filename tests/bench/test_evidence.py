"""bench.evidence without its engine: the oracle, the figures of a run, and the report."""

from __future__ import annotations

import json
from random import Random

import pytest
from scripted_engine import ScriptedEngine

from bench.evidence.__main__ import write_report
from bench.evidence.arms import ABLATIONS, ARMS, MAIN, Plan, arm_config, run_folder
from bench.evidence.oracle import OracleCritic, tiny_oracle
from bench.evidence.report import Figures, differences, interval
from bench.evidence.runs import FIGURES, missing_seeds, rule_counts
from capo_fast.credit.critic import load_template, parse_critique
from capo_fast.data import ChatTemplate
from capo_fast.records import Completion, Request
from capo_fast.rollout.requests import critique_prompt_ids
from capo_fast.tiny.task import World, corrupt_solution, draw_question, oracle_critique, true_wrong_steps
from capo_fast.tiny.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def solutions(count):
    rng, world = Random(0), World.from_seed(0)
    for _ in range(count):
        question = draw_question(rng)
        yield question, corrupt_solution(rng, question) if rng.random() < 0.5 else world.solution(rng, question)


def critiques(chains, noise):
    """Parsed critiques: an oracle's answers to a run's critique requests."""
    critic, template = OracleCritic(None, tiny_oracle(TOKENIZER, noise)), load_template("tiny")
    for i, (question, steps) in enumerate(chains):
        ids = critique_prompt_ids(ChatTemplate(TOKENIZER), template, question, steps, None)
        critic.add(Request(f"critique-0-{i}-0-0", ids, seed=i, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=9))
    answers = critic.step()
    return [parse_critique(a.text, len(steps), a.finished) for a, (_, steps) in zip(answers, chains, strict=True)]


def test_the_oracle_follows_the_rule():
    chains = list(solutions(300))
    found = critiques(chains, noise=0.0)
    assert [c.wrong_steps for c in found] == [true_wrong_steps(*chain) for chain in chains]
    assert not any(c.abstained or c.dropped for c in found)


def test_noise_flips_verdicts_at_its_rate_and_repeatably():
    chains = list(solutions(300))
    found = critiques(chains, noise=0.2)
    assert found == critiques(chains, noise=0.2)
    flips = sum(len(c.wrong_steps ^ true_wrong_steps(*chain)) for c, chain in zip(found, chains, strict=True))
    assert flips / sum(len(steps) for _, steps in chains) == pytest.approx(0.2, abs=0.04)


def test_an_oracle_passes_other_requests_to_the_engine():
    request = Request("rollout-1-0-0", (5,), seed=0, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=4)
    answer = Completion(request.id, (1,), (-0.1,), "", finished=True)
    critic = OracleCritic(ScriptedEngine({request: answer}.__getitem__), tiny_oracle(TOKENIZER, noise=0.0))
    critic.add(request)
    assert critic.step() == [answer]


def made_run(curve, rollouts=(512,) * 4):
    drawn = [sum(rollouts[: i + 1]) for i in range(len(rollouts))]
    rule = {"right": 10, "right_unsound": 1, "judged_wrong": 0, "named": 0, "named_wrong": 0}
    return {
        "rollouts": drawn,
        "curve": list(zip([0, *drawn], curve, strict=True)),
        "wall": [2.0] * 4,
        "cpu": [1.0] * 4,
        "critique_tokens": [100] * 4,
        "stages": dict.fromkeys(("sync", "rollout", "critique", "verify", "learn"), 0.5),
        "by_rule": [{**rule, "right_unsound": i} for i in range(4)],
        "timeouts": 1,
        "about": {"commit": "0123"},
    }


def test_arms_are_compared_at_equal_rollouts():
    figures = Figures(Plan())
    run = made_run([0.0, 0.2, 0.4, 0.6, 0.8])
    assert [figures.rate(0.5)(run), figures.area(1.0)(run), figures.area(0.5)(run)] == pytest.approx([0.4, 0.4, 0.2])
    assert figures.spent("wall")(run) == 8.0
    assert (figures.unsound((0.25, 0.5))(run), figures.unsound((0.75, 1.0))(run)) == (0.1, 0.3)
    assert figures.share((0.75, 1.0), "named_wrong", "named")(run) is None
    assert [figures.rate_after(seconds)(run) for seconds in (0, 1.5, 4, 9)] == pytest.approx([0.0, 0.3, 0.8, 0.8])
    hungry = made_run([0.0, 0.2, 0.4, 0.6, 0.8], rollouts=(1024,) * 4)
    assert (figures.rate(1.0)(hungry), figures.spent("cpu")(hungry)) == pytest.approx((0.4, 2.0))


def test_intervals_are_students_and_differences_paired():
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.48414, abs=1e-4))
    assert interval([1.0]) == (1.0, None)
    runs = {seed: made_run([0.1 * seed] * 5) for seed in (0, 1, 3)}
    shifted = {seed: made_run([0.1 * seed - 0.05] * 5) for seed in (1, 2, 3)}
    assert differences(Figures(Plan()).rate(1.0), runs, shifted) == pytest.approx([0.05, 0.05])


def test_the_report_lists_missing_runs(tmp_path):
    for name, seed in (("grpo", 0), ("grpo", 1), ("capo-1", 0), ("norm-none", 2)):
        folder = run_folder(tmp_path, name, seed)
        folder.mkdir(parents=True)
        (folder / FIGURES).write_text(json.dumps(made_run([0.1, 0.2, 0.3, 0.4, 0.5])))
    assert missing_seeds("grpo", 3, tmp_path) == [2]
    page = write_report(tmp_path, tmp_path / "out", Plan())
    assert "grpo 2 of 8, dr_grpo 0 of 8" in page and "norm-none 1 of 3" in page
    assert "their check timed out: 4." in page
    found = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [
        ("grpo", 0), ("grpo", 1), ("capo-1", 0), ("norm-none", 2)
    ]  # fmt: skip
    assert (tmp_path / "out" / "evidence.png").stat().st_size > 1000


def test_every_arm_is_a_valid_configuration_and_ablations_have_their_reference(tmp_path):
    configs = {name: arm_config(name, 1, Plan(), tmp_path) for name in ARMS}
    assert len({repr(config) for config in configs.values()}) == len(ARMS)
    assert {configs[name].train.steps for name in MAIN} == {16}
    assert all(ablation.reference in MAIN for ablation in ABLATIONS)


def test_a_right_answer_through_a_wrong_step_is_counted():
    row = {"problem": "9*2-9", "outcome": 1.0, "critiques": [{}]}
    sound = row | {"steps": ["9*2=8", "8-9=9", "A:9"], "votes": [0.0, 1.0, 0.0]}
    lucky = row | {"steps": ["9*2=8", "8-9=7", "A:9"], "votes": [0.4, 0.5, 1.0]}
    counts = rule_counts([sound, lucky], oracle_critique)
    assert counts == {"right": 2, "right_unsound": 1, "judged_wrong": 2, "named": 3, "named_wrong": 2}
