"""The choice that an answer names, however it is written."""

from __future__ import annotations

from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_fast.evaluation.choices import read_choice, shown_question, shuffled

PLANETS = ("Mercury", "Venus", "the Earth", "Mars and its moons")

READABLE = {
    r"Thus \boxed{C}.": 2,
    r"Thus $\boxed{\text{C}}$": 2,
    r"\boxed{(C)}": 2,
    r"\boxed{c}": 2,
    r"\boxed{\textbf{(C) the Earth}}": 2,
    r"\boxed{C. the Earth}": 2,
    r"\boxed{the Earth}": 2,
    r"not \boxed{A}, but \boxed{C}": 2,
    "The answer is (C).": 2,
    "I first thought the answer is A, but it's C.": 2,
    "So f(A) = 1, and (C) is right.": 2,
    "The answer is C because A is too hot": 2,
    "the correct answer is: **C**": 2,
    "The correct option is C) the Earth": 2,
    "Answer: C": 2,
    "**Answer:** C": 2,
    "The answer is the Earth.": 2,
    "A is wrong and B is wrong.\nC": 2,
    "Let us see.\n\n(C) the Earth": 2,
    "Let us see.\nTherefore (C) is right.": 2,
    "A, B and D are out.\nIt must be the Earth.": 2,
    "the Earth": 2,
    "C": 2,
    " c. ": 2,
    "The answer is A.": 0,
    "The answer is A, since it is hot.": 0,
    r"I think so. The final answer is $\boxed{D}$. I hope it is correct.": 3,
    # the word before the letter
    "Option C": 2,
    "option c": 2,
    "Choice C": 2,
    r"\boxed{\text{Option C}}": 2,
    "The answer is Option C.": 2,
    "Answer: option c": 2,
    "The correct option: C": 2,
    # tags and thinking
    "<answer>C</answer>": 2,
    r"<think>\boxed{B}</think>The answer is C.": 2,
    # conclusions
    "So C.": 2,
    "I choose C.": 2,
    "Therefore, the answer must be C.": 2,
    "So the best choice is C, as B and D fail.": 2,
    "C, since B is too hot": 2,
    # letters that are said to be wrong
    "B is incorrect because it floats. C is the answer.": 2,
    "A) is wrong, so C": 2,
    "not B but C": 2,
    "The answer is not B but C.": 2,
    "The answer isn't A. It's C.": 2,
    "The answer is (C), not (B).": 2,
    "A and B are incorrect, and D is out. C is right.": 2,
    "Neither A nor B. C it is": 2,
    "It cannot be A or B. C.": 2,
    "If B were right, it would float. So C.": 2,
    "Option B is wrong. Option C is the answer.": 2,
    "B is tempting but C is correct.": 2,
    "Rule out A, B and D; the answer is C": 2,
    "Answer: C\n\nB is wrong because it is hot.": 2,
    # fonts, brackets, full width
    "**C**": 2,
    "_C_": 2,
    "(c)": 2,
    "[C]": 2,
    "\uff08\uff23\uff09": 2,
    r"\boxed{\mathrm{(C)}}": 2,
    "answer=C": 2,
}
UNREADABLE = [
    "",
    "A or B",
    "The answer is A or B",
    "The answer is (A) and (C).",
    r"\boxed{E}",
    r"\boxed{}",
    "I do not know",
    "(A) or (B)",
    "Venus or Mercury",
    "The answer is a secret",
    "The answer is A planet",
    r"\boxed{42}",
    r"\boxed{A, C}",
    r"\boxed{B or C}. The answer is A",
    r"<think>\boxed{B}</think>",
    "The answer is B? No, C.",
    "It is either B or C.",
    "B and C are correct.",
    "My answer is wrong",
    "The answer can't be B.",
    "The wrong answer is A.",
    "The least likely answer is A.",
    "So f(A) = 12.",
    "Not B.",
    "I would say B is wrong.",
    "A is wrong. B is wrong. D is wrong.",
    "A planet",
    "I",
    "E",
]


@pytest.mark.parametrize("text", READABLE)
def test_the_choice_is_read(text):
    assert read_choice(text, PLANETS) == READABLE[text]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_names_no_one_choice_is_none(text):
    assert read_choice(text, PLANETS) is None


def test_a_letter_is_a_place_and_a_text_is_a_text():
    """Where the texts are letters themselves, a letter still names the place, as the question asks."""
    assert read_choice(r"\boxed{A}", ("B", "A")) == 0
    assert read_choice(r"\boxed{3}", ("13", "3")) == 1
    assert read_choice("It is 3 kg.", ("13 kg", "3 kg")) == 1
    assert read_choice("The answer is 13 kg", ("13", "13 kg")) == 1
    assert read_choice("so it is 13 kg.", ("13", "13 kg")) == 1  # the wider of two that are mentioned


def test_equal_texts_are_told_apart_by_letter_alone():
    assert read_choice(r"\boxed{5}", ("5", "5")) is None
    assert read_choice(r"\boxed{B}", ("5", "5")) == 1


SAYINGS = [
    r"so \boxed{%s}",
    r"$\boxed{\mathrm{%s}}$",
    "The answer is (%s).",
    "Answer: %s",
    "hm\n%s",
    "hm\n(%s)",
    "%s",
    "The answer is %s.",
]


@given(st.integers(2, 10), st.data(), st.sampled_from(SAYINGS))
def test_every_letter_in_every_wording_comes_back_through_every_order(count, data, saying):
    choices = [f"choice number {i}" for i in range(count)]
    order = shuffled(count, data.draw(st.integers(0, 2**63)))
    assert sorted(order) == list(range(count))
    wanted = data.draw(st.integers(0, count - 1))
    shown = [choices[choice] for choice in order]
    place = read_choice(saying % ascii_uppercase[order.index(wanted)], shown)
    assert place is not None and order[place] == wanted


@given(st.text(alphabet=st.sampled_from("ABCD()[]{}\\boxed answer is:\n.*$or,the Earth"), max_size=80))
def test_no_text_breaks_it(text):
    place = read_choice(text, PLANETS)
    assert place is None or 0 <= place < 4


def test_long_texts_take_linear_time():
    for text in ("answer is ", "((((A", r"\boxed{", "A or ", "$\\text{"):
        read_choice(text * 10_000, PLANETS)


def test_orders_differ_by_seed_and_the_question_shows_all():
    assert len({shuffled(4, seed) for seed in range(200)}) == 24
    text = shown_question("Which?", PLANETS)
    assert text.startswith("Which?\n\nA. Mercury\nB. Venus\n")
    assert "boxed" in text
