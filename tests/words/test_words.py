"""The world of words: the rule against the generator, critiques that parse to the truth, and disjoint files."""

import json
from itertools import islice
from random import Random

import pytest

from capo_fast.credit.critic import load_template, parse_critique, render_critique_prompt
from capo_fast.words.critique import critique_prompt, critique_text, shown_solution
from capo_fast.words.files import Sizes, files, read_structures, write_files
from capo_fast.words.planted import plant_errors
from capo_fast.words.problems import LARGEST, MAX_STEPS, MIN_STEPS, draw_distinct, draw_problem
from capo_fast.words.stories import HELD_OUT, STORIES
from capo_fast.words.task import BLANK, results, structure_of, true_wrong_steps
from capo_fast.words.world import FACTS, World, right_steps

STRUCTURE = structure_of([["+", 12, 7], ["*", 3, 4], ["-", "#0", "#1"], ["*", "#2", 2]])
RIGHT = ["12 + 7 = 19 pens", "3 * 4 = 12 pens", "19 - 12 = 7 pens", "7 * 2 = 14 pens", r"Answer: \boxed{14}"]
SIZES = Sizes(problems=60, heldout=20, sft=60)


def problems(count, stories=STORIES, seed=0):
    rng = Random(seed)
    return [(draw_problem(rng, stories, rng.randint(MIN_STEPS, MAX_STEPS)), rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, []),
        ({0: RIGHT[1], 1: RIGHT[0]}, []),  # the problem allows either order
        ({0: "So she has 7 + $12 = $19"}, []),
        ({1: "3 × 4 = 12", 3: r"7 * 2 = 14, so \boxed{14}", 4: ""}, [4]),  # the answer was already given
        ({0: "12 + 7 = 18", 2: "18 - 12 = 6", 3: "6 * 2 = 12", 4: r"\boxed{12}"}, [0]),  # only the first
        ({0: "12 - 7 = 5", 2: "5 - 12 = -7", 3: "-7 * 2 = -14", 4: r"\boxed{-14}"}, [0]),
        ({2: "12 - 19 = -7", 3: "-7 * 2 = -14", 4: r"\boxed{-14}"}, [2]),  # the order of a difference matters
        ({0: RIGHT[1], 1: "19 - 12 = 7", 2: RIGHT[3], 3: RIGHT[4], 4: ""}, [1, 4]),  # a step left out
        ({1: RIGHT[0], 2: RIGHT[1], 3: RIGHT[2], 4: RIGHT[3]}, [1]),  # a repeated step
        ({3: r"Answer: \boxed{7}", 4: ""}, [3, 4]),  # too early
        ({4: r"Answer: \boxed{15}"}, [4]),
        ({0: "12 + 7 = 19.5", 1: "Let us see."}, [0, 1, 2]),  # no result stated; step 2 depends on both
    ],
)
def test_the_rule(changes, wrong):
    steps = [changes.get(k, step) for k, step in enumerate(RIGHT)]
    assert sorted(true_wrong_steps(STRUCTURE, steps)) == wrong


def test_the_rule_finds_the_planted_errors():
    # One in 2,000 planted errors equals another step of its problem by chance; none of these does.
    for problem, rng in problems(600, seed=1):
        steps, wrong = plant_errors(rng, problem)
        assert true_wrong_steps(problem.structure, steps) == wrong, (problem, steps)


def test_right_solutions_are_right_and_their_numbers_are_small():
    for problem, rng in problems(200) + problems(50, HELD_OUT):
        steps = right_steps(rng, problem)
        assert true_wrong_steps(problem.structure, steps) == frozenset()
        assert steps[-1] == rf"Answer: \boxed{{{problem.answer}}}"
        assert all(2 <= value <= LARGEST for value in results(problem.structure))
        assert MIN_STEPS <= len(problem.structure) <= MAX_STEPS


def test_the_world_makes_systematic_errors_and_right_answers_with_wrong_steps():
    world, drawn = World.from_seed(0), problems(2000)
    judged = [(p, steps, true_wrong_steps(p.structure, steps)) for p, r in drawn for steps in [world.solution(r, p)]]
    right = [wrong for p, steps, wrong in judged if steps[-1].endswith(f"{{{p.answer}}}")]
    assert 0.48 < len(right) / len(judged) < 0.6
    assert 0.1 < sum(map(bool, right)) / len(right) < 0.25


def test_critiques_parse_to_the_true_steps():
    world = World.from_seed(0)
    for problem, rng in problems(300):
        for steps in (plant_errors(rng, problem)[0], world.solution(rng, problem)):
            critique = parse_critique(critique_text(problem.structure, steps), len(steps))
            assert not critique.abstained and critique.dropped == 0
            assert critique.wrong_steps == true_wrong_steps(problem.structure, steps)
            assert shown_solution(critique_prompt(problem.text, steps)) == (problem.text, steps)


def test_the_critic_is_trained_on_the_trainer_s_prompt():
    assert render_critique_prompt(load_template("words"), "P?", RIGHT) == critique_prompt("P?", RIGHT)


def test_files_are_repeatable_and_share_no_problem_or_form(tmp_path):
    for name in "ab":
        write_files(tmp_path / name, 3, SIZES)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["critic.jsonl", "forms.jsonl", "heldout.jsonl", "longer.jsonl", "sft.jsonl", "train.jsonl"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    rows = {name: [json.loads(line) for line in (tmp_path / "a" / name).open()] for name in names}
    file_of = {
        row.get("problem") or shown_solution(row["messages"][0]["content"])[0]: name
        for name in names
        for row in rows[name]
    }
    assert len(file_of) == sum(map(len, rows.values()))
    assert {row["story"] for row in rows["forms.jsonl"]} <= set(HELD_OUT)
    assert {row["story"] for row in rows["train.jsonl"]} <= set(STORIES)
    assert {len(row["structure"]) for row in rows["longer.jsonl"]} == {MAX_STEPS + 1}
    for row in rows["train.jsonl"] + rows["forms.jsonl"]:
        assert not true_wrong_steps(structure_of(row["structure"]), row["solution"].split(BLANK))
    for row in rows["critic.jsonl"]:
        assert row["wrong_steps"] == sorted(true_wrong_steps(structure_of(row["structure"]), row["steps"]))
    assert len(read_structures([tmp_path / "a" / "train.jsonl"])) == SIZES.problems


def test_another_seed_gives_another_world():
    assert World.from_seed(0) != World.from_seed(1)
    assert files(0, SIZES, FACTS)["sft"] != files(1, SIZES, FACTS)["sft"]


def test_a_problem_is_drawn_once():
    drawn = set()
    once, again = ([p.text for p in islice(draw_distinct(Random(0), STORIES, drawn), 50)] for _ in range(2))
    assert set(once).isdisjoint(again)
    assert len(drawn) == 100
