"""Extracting the final answer of a solution and of a reference."""

from __future__ import annotations

import pytest
from fuzz_texts import HOSTILE_ANSWERS

from capo_fast.verify.extract import extract_answer, reference_answer

BOXES = [
    (r"so \boxed{3}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{a\}b}", r"a\}b"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\fbox{42}} or \framebox{7", "42"),
    (r"$\boxed5$", "5"),
    (r"\\boxed{5}", "5"),
    (r"\boxed{7} and then \boxed{8", "7"),
    (r"\boxed{7} or so. Put it in \boxed{}", "7"),
    (r"\boxed{1}, \boxed{2} and $\boxed{3}$", "1, 2, 3"),
    (r"\boxed{(3, 3)} \text{ for part (a) and } \boxed{(1, 1)}", "(3, 3), (1, 1)"),
    (r"\boxed{A} \boxed{B}", "B"),
    (r"At most \(\boxed{3}\), and the least possible number is \(\boxed{1}\).", "3, 1"),
    (r"\boxed{3}, and hence the answer is \boxed{5}", "5"),
    (r"#### 4 then \boxed{5}", "5"),
    (r"\boxed{4}. Final Answer: The final answer is $7$. I hope it is correct.", "7"),
]
THINKING = [
    (r"<think>perhaps \boxed{5}, no</think>" "\n\nThe final answer is 7.", "7"),
    (r"perhaps \boxed{5}</think> 7", "7"),
    ("<think>the answer is 5", None),
    (r"<think>\boxed{5}</think>", None),
    ("<think>5 or 6</think><answer>x+1</answer>", "x+1"),
    (r"<answer>\frac{1}{2}</answer>", r"\frac{1}{2}"),
    ("<answer>The answer is 12 apples</answer>", "12"),
]
MARKS = [
    ("5+5=10\n#### 10", "10"),
    ("x\n#### \n42", "42"),
    ("x\n#### **42**", "42"),
    ("x\n#### The answer is 42.", "42"),
    ("x\n#### 42 (7 each for 6 people)", "42"),
    ("The answer is 3.\n#### 4", "4"),
    ("x\n#### 4\n\nDone.", "4"),
    ("#### Step 1\n2+3=5\n\nSo the total is 5.", "5"),
    ("#### 2. Multiply the result by 3\n5*3=15", "15"),
    ("##### Step 2: double\n5*2=10. So the answer is 10.", "10"),
]
PHRASES = [
    ("The answer is 3. Then 9 more.", "3"),
    ("The answer is **5**.", "5"),
    ("**Answer: 73**", "73"),
    ("The answer is `x+1`", "x+1"),
    ("the answer is: 12 apples and 3 pears", "12"),
    (r"The answer is $\frac{5}{6}$.", r"\frac{5}{6}"),
    (r"The answer is \frac{3}{4} litres.", r"\frac{3}{4}"),
    ("first the answer is 2, later the answer is 3", "3"),
    ("The answer is 10 - 3 = 7 dollars.", "10 - 3 = 7"),
    ("The answer is not 4 but 5.", "5"),
    ("The answer is $5$ or $-5$.", "5, -5"),
    ("The answers are 2 and 3.", "2 and 3"),
    ("The answer is (1, 2) as found above.", "(1, 2)"),
    ("My first answer is wrong. It is 8.", "8"),
    ("Work 1.\n\nAnswer: 12 (4 groups of 3)", "12"),
    ("Work 1.\n\nAnswer:\n$$\n9\n$$", "9"),
    ("2+3=5.\n\nAnswer: Yes", "Yes"),
    ("Answer： １２", "12"),
    ("The answer is 5 feet 10 inches.", "5 feet 10 inches"),
    ("The answer is all real numbers except 2.", "all real numbers except 2"),
    ("so the answer is 2½", r"2\frac{1}{2}"),
    ("the answer is - 3", "- 3"),
]
PROSE = [
    ("We have 7 and 8 apples left", "8"),
    ("it costs $1,234.50 in all", "1,234.50"),
    ("It costs $5, the tax is $2, the total is $7", "7"),
    (r"Therefore $x \geq 5$ is the solution.", r"x \geq 5"),
    (r"Therefore, x = \frac{3}{4}.", r"\frac{3}{4}"),
    ("Thus it can be done in 2^10 ways", "2^10"),
    ("so the area is 12 cm^2.", "12"),
    ("So that means he makes 96*5=$<<96*5=480>>480 a week", "480"),
    (r"the values are \(-1, 0,\) and \(1\).", "-1, 0, 1"),
    ("we get 5-3 and so -2", "-2"),
    ("9*2=8\n\n8-9=9\n\nA:9", "9"),
    ("x+1", "x+1"),
    ("Evelyn", "Evelyn"),
    ("-3", "-3"),
    ("", None),
    ("there is nothing to be found here", None),
]


@pytest.mark.parametrize(("text", "answer"), [*BOXES, *THINKING, *MARKS, *PHRASES, *PROSE])
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", ["6*", "so the answer is 5", "#### 5", "<answer>5</answer>", r"\boxed{5"])
def test_a_truncated_solution_has_an_answer_only_in_a_closed_box(text: str) -> None:
    assert extract_answer(text, truncated=True) is None
    assert extract_answer(rf"\boxed{{7}}, as {text}", truncated=True) == "7"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *[(text, text) for text in ("2xy + 10x + 20y + 100", "AB=9, CD=4", "3 out of 5", "The limit does not exist")],
        *[(text, text) for text in ("10:00 AM", "May 5, 2020", "arcsin(10/13)", "the answer is 5", "<think>5</think>")],
        (r"so it is $\boxed{2xy}$.", "2xy"),
        ("It falls by 5 from 2.\n#### -3", "-3"),
        (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
        ("  5 ", "5"),
    ],
)
def test_a_reference_is_an_answer(text: str, answer: str) -> None:
    assert reference_answer(text) == answer


def test_time_is_linear_in_the_length_of_a_text() -> None:
    """A regular expression with quadratic time would take minutes."""
    pieces = [
        "answer is ",
        "<think>",
        "<answer>",
        "**a",
        "`a",
        "#### ",
        "$1 and ",
        r"\(",
        "not 1 but ",
        "1 and ",
        "\\",
        "√½²",
    ]
    for text in [*HOSTILE_ANSWERS, *(piece * 5_000 for piece in pieces)]:
        extract_answer(text)
        reference_answer(text)
