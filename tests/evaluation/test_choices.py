"""Reading the choice that an answer names, in any wording."""

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
    # letters stated to be wrong
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
    # taken back
    "The answer is B? No, C.": 2,
    "The answer is C. It actually orbits. For B, the mass differs.": 2,
    "I first thought A, but C": 2,
    "Wait, the answer is A. Hmm, actually C.": 2,
    "The answer is B.\nWait, B floats. Actually, the answer must be C.": 2,
    "The answer is C, but B was tempting.": 2,
    "The answer is C. Actually, let me check: yes.": 2,
    "The wrong answer is A.\nAnswer: C": 2,
    "B is wrong\nAnswer: C": 2,
    "The answer that is wrong is B; the answer that is right is C.": 2,
    "The answer is C, although B is close.": 2,
    "The only incorrect statement is C.": 2,
    "Thus, C is our answer.": 2,
    "The answer is B. That was a mistake. It is C.": 2,
    # a letter that is no choice
    "So f(A) is that of the Earth.": 2,
    "The answer is A because C is wrong": 0,
    "I do not think it is B. So C.": 2,
    "Only C satisfies the equation.": 2,
    "If A is right, it floats. C is the best.": 2,
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
    "The wrong answer is A.",
    "The incorrect option is C.",
    "The least likely answer is B.",
    "My first answer is B.",
    "It is false that the answer is C.",
    "Is the answer C?",
    "The answer is C if it is hot, else B.",
    "C would be right if it were hot.",
    "The answer is C. Wait, that is wrong.",
    "It seems the answer is C, but that is a trap.",
    "The answer is anything but C.",
    r"\boxed{\text{all but C}}",
    "Answer: C^2",
    "The answer is B. Wait, C floats as well.",
    "At first C is right, but B fits better.",
    "Vitamin C",
    "Plan B",
    "In case A it is Venus.",
    "So f(B) = f(C).",
    "I would not choose C.",
    "I do not think C is right.",
    "It is unclear whether C is correct.",
    "If C is correct, it floats.",
    "C is hardly correct.",
    "C is absurd.",
    "B is no better than C.",
    "The answer is between B and C",
    r"\boxed{(C) Venus}",
    "B. the Earth",
    "The answer is Venus (C)",
    "A = Venus",
    "A planet",
    "I",
    "E",
]

NUMBERS, ANIMALS, METALS = (
    ("7", "12", "19", "30"),
    ("a cat", "a dog", "a horse", "none of the above"),
    ("iron", "copper", "lead"),
)
REVIEWED = [  # from two reviews; the second is hostile
    ("Option B", 1),
    ("option b", 1),
    ("OPTION D", 3),
    ("Choice A", 0),
    ("So D.", 3),
    ("<answer>D</answer>", 3),
    ("<answer>(B)</answer>", 1),
    ("<answer>Option A</answer>", 0),
    (r"\boxed{\text{Option D}}", 3),
    (r"\boxed{\text{choice B}}", 1),
    (r"\boxed{\mathbf{B}}", 1),
    (r"\boxed{\textbf{(B)}}", 1),
    (r"\boxed{B) 12}", 1),
    (r"\boxed{B: 12}", 1),
    (r"\boxed{(B)\ 12}", 1),
    (r"\boxed{12}", 1),
    ("The correct answer is **C**", 2),
    ("**Answer: C**", 2),
    ("Answer: C) 19", 2),
    ("The best choice is C.", 2),
    ("Therefore, the correct option is (D) 30.", 3),
    ("A is incorrect because 7 is prime. B is the answer.", 1),
    ("A is incorrect since it is too small, C is too large. B is correct.", 1),
    ("A) is wrong, so D", 3),
    ("Neither A nor B. So the answer is C.", 2),
    ("We can rule out A and D. The answer must be B.", 1),
    ("B is wrong. C is wrong. D is wrong. So A.", 0),
    ("It isn't B; it's C.", 2),
    ("The answer is not A but C.", 2),
    ("The answer is not B.", None),
    ("Not A.", None),
    ("I choose C", 2),
    ("My answer: c", 2),
    ("c", 2),
    ("C.", 2),
    ("(C)", 2),
    ("C) 19", 2),
    ("C - 19", 2),
    ("Both A and C are correct.", None),
    ("The answer is A or C.", None),
    ("I don't know.", None),
    ("The answer is F.", None),
    (r"\boxed{AB}", None),
    (r"<think>A seems right, \boxed{A}</think> The answer is B.", 1),
    ("<think>A seems right</think>\n\n**D**", 3),
    ("Answer:\nB", 1),
    ("The answer is\n\nB", 1),
    ("\u7b54\u6848\uff1aB", 1),
    ("\u7b54\u6848\u662fC\u3002", 2),
    ("\u6b63\u786e\u9009\u9879\u662f D", 3),
    (r"Final Answer: \boxed{\text{(A) } 7}", 0),
    ("The answer is 19.", 2),
    ("19", 2),
    ("The answer is 19, which is C.", 2),
    ("So it should be C, not B.", 2),
    ("Options A, B and D are wrong, leaving C.", 2),
    ("All of A, B, C fail; hence D.", 3),
    ("Comparing: A gives 7, B gives 12. The question asks for 12, so it's B.", 1),
    ("A student has 19 coins", 2),
    ("I think the result is D", 3),
    ("Correct Answer: D. 30", 3),
    ("The correct letter is D", 3),
    (r"Answer is $\boxed{D}$.", 3),
    ("**(A)**", 0),
    ("`B`", 1),
    ("A\u3002", 0),
    ("A is the right answer, B is not.", 0),
    ("While B looks tempting, A is correct.", 0),
    ("A is tempting but the answer is D because 30 is even.", 3),
    ("Choosing between A and B, I go with B.", 1),
    ("Option A is incorrect. Option B is incorrect. Option C is incorrect. Option D is correct.", 3),
    ("A, B, and C are all false. Therefore D is true.", 3),
    ("If A were right, 7 > 12, a contradiction. Answer: C", 2),
    ("The answer: (B)", 1),
    ('{"answer": "C"}', 2),
    ("Answer: [B]", 1),
    ("The answer is (\u216d)", None),
    ("B is correct because A is wrong.", 1),
    ("C is the only one that is not wrong.", 2),
    ("The answer cannot be A, so it's B", 1),
    ("The answer is either A or D, but A fails, so D.", 3),
    ("The answer isn't A. It's D.", 3),
    ("It could be A, B or C. I'd go for C.", 2),
    ("A and B are wrong, D too. The answer: C.", 2),
    ("Answer: not A", None),
    (r"\boxed{\text{not A}}", None),
    (r"\boxed{A \text{ or } B}", None),
    (r"\boxed{A/B}", None),
    (r"\boxed{A}, \boxed{B}", None),
    (r"\boxed{A} no, \boxed{B}", 1),
    ("B is more plausible than A.", 1),
    ("B is better than A.", 1),
    ("C rather than B.", 2),
    ("A is the wrong answer.", None),
    ("A is a wrong answer, the right one is B.", 1),
    ("The answer A is wrong.", None),
    ("The answer B is correct.", 1),
    ("Option B is the right one.", 1),
    ("I'd eliminate A, leaving B, C; of these C fits best.", 2),
    ("C satisfies the equation, A and B do not.", 2),
    ("A does not satisfy. B does.", 1),
    ("A doesn't hold, B doesn't hold, C doesn't hold, so D", 3),
    ("Answer is between A and B", None),
    ("The answer that is wrong is B; the answer that is right is D.", 3),
    ("Which is wrong? A. So the answer: B", 1),
    ("The least likely answer is A.", None),
    ("Answer: A is false", None),
    ("The answer is none of A, B, C.", None),
    ("I first thought the answer is A, but it's B.", 1),
    ("The answer is A? No, the answer is B.", 1),
    ("Wait, the answer is A. Hmm, actually B.", 1),
    ("Vitamin C is needed. Answer: A", 0),
    ("In case A we get 12.", None),
    ("Point A lies on AB. The answer is D.", 3),
    ("Let A be a set. Then 19.", 2),
    ("So f(A)=12.", 1),
    ("A = 12", None),
    ("Group A has 19", None),
    ("By theorem B, the answer is 30.", 3),
    ("I am unsure.", None),
    ("Answer: I don't know", None),
    ("The answer is a good one", None),
    ("The answer is an odd number", None),
    ("The answer is a 12", 1),
    ("a", 0),
    ("The answer is a", 0),
    ("answer: b)", 1),
    ("(b) 12", 1),
    ("b) 12", 1),
    ("The answer is (b)", 1),
    (r"\boxed{b}", 1),
    (r"Therefore, $\boxed{\mathbf{(C)}\ 19}$.", 2),
    (r"\boxed{\text{(C) 19}}", 2),
    (r"\boxed{(C) 12}", None),
    ("C. 12", None),
    ("**C. 19**", 2),
    ("Answer: 12 (B)", 1),
    ("12 (option B)", 1),
    ("The answer is 12, option B.", 1),
    ("the answer is 12 (A)", None),
    ("The correct answer is D: 30 apples", 3),
    ("The answer is **not** A, it is **B**.", 1),
]
IN_WORDS = [
    ("a dog", 1),
    ("The answer is a dog.", 1),
    ("A", 0),
    ("A dog is what I'd pick.", 1),
    ("A horse barks not; it is a dog.", None),
    (r"\boxed{\text{a horse}}", 2),
    ("None of the above", 3),
    ("The answer is none of the above.", 3),
    ("D. none of the above", 3),
    ("A cat.", 0),
    ("I would say a horse", 2),
    ("I am sure it is C", 2),
    ("A: a cat", 0),
    ("A dog is wrong. So it is a cat.", 0),
    ("The answer is a cat, not a dog.", 0),
]
OF_METALS = [
    ("copper", 1),
    ("Copper (B)", 1),
    ("It is lead.", 2),
    ("Not iron, but lead.", 2),
    ("D", None),
    ("iron and lead", None),
]
STILL_UNREADABLE = {
    "\u7b54\u6848\u662fC\u3002",
    "Choosing between A and B, I go with B.",
    "A dog is wrong. So it is a cat.",
    "The answer is a cat, not a dog.",
    "Not iron, but lead.",
    "B is more plausible than A.",
    "B is better than A.",
    "I'd eliminate A, leaving B, C; of these C fits best.",
}
"""Answers that a human can read but that are still counted as unreadable."""


@pytest.mark.parametrize("text", READABLE)
def test_the_choice_is_read(text):
    assert read_choice(text, PLANETS) == READABLE[text]


@pytest.mark.parametrize("text", UNREADABLE)
def test_an_answer_that_names_no_single_choice_is_none(text):
    assert read_choice(text, PLANETS) is None


@pytest.mark.parametrize(
    ("choices", "rows"),
    [(NUMBERS, REVIEWED), (ANIMALS, IN_WORDS), (METALS, OF_METALS)],
    ids=["numbers", "words", "metals"],
)
def test_no_answer_is_read_as_another_choice(choices, rows):
    found = {text: read_choice(text, choices) for text, _ in rows}
    assert {text: found[text] for text, right in rows if found[text] not in (right, None)} == {}
    assert {text for text, right in rows if found[text] is None and right is not None} <= STILL_UNREADABLE


def test_a_letter_names_a_position_and_a_text_a_choice():
    """If the choices' texts are letters, a letter still names a position, as the question requests."""
    assert read_choice(r"\boxed{A}", ("B", "A")) == 0
    assert read_choice(r"\boxed{3}", ("13", "3")) == 1
    assert read_choice("It is 3 kg.", ("13 kg", "3 kg")) == 1
    assert read_choice("The answer is 13 kg", ("13", "13 kg")) == 1
    assert read_choice("so it is 13 kg.", ("13", "13 kg")) == 1  # the longer of the two that match


def test_equal_texts_are_distinguished_only_by_letter():
    assert read_choice(r"\boxed{5}", ("5", "5")) is None
    assert read_choice(r"\boxed{B}", ("5", "5")) == 1


WORDINGS = [
    r"so \boxed{%s}",
    r"$\boxed{\mathrm{%s}}$",
    "The answer is (%s).",
    "Answer: %s",
    "hm\n%s",
    "hm\n(%s)",
    "%s",
    "The answer is %s.",
]


@given(st.integers(2, 10), st.data(), st.sampled_from(WORDINGS))
def test_every_letter_in_every_wording_is_mapped_back_from_every_order(count, data, wording):
    choices = [f"choice number {i}" for i in range(count)]
    order = shuffled(count, data.draw(st.integers(0, 2**63)))
    assert sorted(order) == list(range(count))
    expected = data.draw(st.integers(0, count - 1))
    shown = [choices[choice] for choice in order]
    place = read_choice(wording % ascii_uppercase[order.index(expected)], shown)
    assert place is not None and order[place] == expected


@given(st.text(alphabet=st.sampled_from("ABCD()[]{}\\boxed answer is:\n.*$or,the Earth"), max_size=80))
def test_any_text_gives_a_choice_or_none(text):
    place = read_choice(text, PLANETS)
    assert place is None or 0 <= place < 4


def test_time_is_linear_in_the_length_of_a_text():
    for text in ("answer is ", "((((A", r"\boxed{", "A or ", "$\\text{"):
        read_choice(text * 10_000, PLANETS)


def test_orders_differ_by_seed_and_the_question_shows_all():
    assert len({shuffled(4, seed) for seed in range(200)}) == 24
    text = shown_question("Which?", PLANETS)
    assert text.startswith("Which?\n\nA. Mercury\nB. Venus\n")
    assert "boxed" in text
