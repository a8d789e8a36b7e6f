"""The rule of the tiny world: hand-made cases, and properties over many drawn solutions."""

from random import Random

import pytest

from capo_fast.tiny.critique import critique_prompt, critique_text
from capo_fast.tiny.task import (
    MAX_OPS,
    MAX_STEPS,
    MIN_OPS,
    OPS,
    World,
    answer,
    apply,
    corrupt_solution,
    draw_question,
    operations,
    oracle_critique,
    right_steps,
    stated,
    stated_answer,
    true_wrong_steps,
)

QUESTION = "9*2-9-9+9"
RIGHT = ["9*2=8", "8-9=9", "9-9=0", "0+9=9", "A:9"]


@pytest.mark.parametrize(
    ("question", "steps", "wrong"),
    [
        (QUESTION, RIGHT, set()),
        pytest.param(
            QUESTION, ["9*2=7", "7-9=8", "8-9=9", "9+9=8", "A:8"], {0}, id="a carried error is not wrong again"
        ),
        pytest.param(QUESTION, ["9*2=7", "7-9=9", "9-9=0", "0+9=9", "A:9"], {0, 1}, id="two errors that cancel"),
        pytest.param("3+4*0+1", ["3+4=6", "6*0=0", "0+1=1", "A:1"], {0}, id="x0 hides an error"),
        pytest.param("3+4*5+1", ["3+4=9", "9*5=5", "5+1=6", "A:6"], {0}, id="x5 hides an error"),
        pytest.param(QUESTION, [*RIGHT[:4], "A:8"], {4}, id="the answer must restate the last result"),
        pytest.param(QUESTION, [*RIGHT[:2], "A:9"], {2}, id="an answer given too early"),
        pytest.param(QUESTION, [*RIGHT, "A:9"], {5}, id="nothing follows the answer"),
        pytest.param(QUESTION, ["9*2=8", "7-9=8", "8-9=9", "9+9=8", "A:8"], {1}, id="a copy slip of the result"),
        pytest.param(QUESTION, ["9*2=8", "8+9=7", "7-9=8", "8+9=7", "A:7"], {1}, id="a copy slip of the operation"),
        pytest.param(QUESTION, ["9*2=8", "8-9=", "9-9=0", "0+9=9", "A:9"], {1}, id="a step without a result"),
        pytest.param(QUESTION, ["nonsense", *RIGHT[1:]], {0}, id="a step that is no line"),
        (QUESTION, [], set()),
    ],
)
def test_the_oracle_judges_each_step_separately(question, steps, wrong):
    assert true_wrong_steps(question, steps) == wrong
    assert oracle_critique(f" {question}\n", [step + "\n\n" for step in steps]) == wrong


def test_right_steps_are_right_and_any_other_result_is_wrong():
    rng = Random(0)
    for _ in range(200):
        question = draw_question(rng)
        steps = right_steps(question)
        assert not true_wrong_steps(question, steps)
        k = rng.randrange(len(steps))
        steps[k] = steps[k][:-1] + str((int(steps[k][-1]) + 1) % 10)
        assert k in true_wrong_steps(question, steps)
        assert true_wrong_steps(question, steps) <= {k, k + 1}


def test_the_answer_is_left_to_right_arithmetic_mod_10():
    rng = Random(1)
    for _ in range(200):
        question = draw_question(rng)
        value = int(question[0])
        for op, b in operations(question):
            value = {"+": value + b, "-": value - b, "*": value * b}[op]
        assert answer(question) == str(value % 10)


def test_questions_have_the_configured_lengths():
    rng = Random(2)
    lengths = {len(operations(draw_question(rng))) for _ in range(300)}
    assert lengths == set(range(MIN_OPS, MAX_OPS + 1))
    assert len(right_steps("1" + "+1" * MAX_OPS)) == MAX_STEPS


def test_misconceptions_are_fixed_and_always_wrong():
    world = World.from_seed(0)
    assert world == World.from_seed(0) != World.from_seed(1)
    assert len(world.beliefs) == 135
    for (a, op, b), (wrong, probability) in world.beliefs.items():
        assert op in OPS
        assert wrong != apply(a, op, b)
        assert 0.3 <= probability <= 0.8


def test_pretraining_solutions_are_as_wrong_as_designed():
    rng, world = Random(3), World.from_seed(0)
    questions = [draw_question(rng) for _ in range(4000)]
    solutions = [world.solution(rng, question) for question in questions]
    right = [stated_answer(s) == answer(q) for q, s in zip(questions, solutions, strict=True)]
    wrong = [true_wrong_steps(q, s) for q, s in zip(questions, solutions, strict=True)]
    assert sum(right) / len(right) == pytest.approx(0.35, abs=0.03)
    assert sum(map(len, wrong)) / sum(map(len, solutions)) == pytest.approx(0.22, abs=0.015)
    lucky = sum(r and bool(w) for r, w in zip(right, wrong, strict=True))
    assert lucky / sum(right) > 0.1, "right answers with wrong steps occur"


@pytest.mark.parametrize(
    ("step", "value"), [("9*2=8", 8), ("A:3", 3), ("9*2=", None), ("9*2", None), ("", None), ("=²", None)]
)
def test_stated_result(step, value):
    assert stated(step) == value


def test_every_error_of_the_critic_s_data_occurs():
    rng, ends = Random(4), {"good": 0, "wrong": 0, "odd length": 0, "no result": 0}
    for _ in range(1500):
        question = draw_question(rng)
        steps = corrupt_solution(rng, question)
        ends["wrong" if true_wrong_steps(question, steps) else "good"] += 1
        ends["odd length"] += len(steps) != len(right_steps(question))
        ends["no result"] += any(stated(step) is None for step in steps)
    assert all(ends.values()), ends


def test_the_formats_of_critiques():
    steps = ["9*2=7", "7-9=8", "A:3"]
    assert critique_prompt("9*2-9", steps) == "9*2-9\n<step_0>9*2=7</step_0><step_1>7-9=8</step_1><step_2>A:3</step_2>"
    assert critique_text("9*2-9", steps) == (
        "<step_0>9*2=8 said 7 x\n<step_1>7-9=8 said 8 ok\n<step_2>A:8 said 3 x\n"
        "Judgment: No\n<incorrect_steps>0,2</incorrect_steps>"
    )
    assert critique_text("9*2", ["9*2=8", "A:8", "A"]).endswith(
        "<step_2>? said ? x\nJudgment: No\n<incorrect_steps>2</incorrect_steps>"
    )
    assert critique_text("9*2", ["9*2=8", "A:8"]).endswith("ok\nJudgment: Yes")
