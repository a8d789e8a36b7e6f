"""The critique parser: its table of outcomes, and the spellings of real critics."""

from __future__ import annotations

import pytest

from capo_fast.credit.critic import parse_critique
from capo_fast.records import Critique

STEPS = 8
ABSTAIN = None


def boxed(body: str) -> str:
    return f"<incorrect_steps>{body}</incorrect_steps>"


def outcome(text: str, num_steps: int = STEPS, finished: bool = True) -> set[int] | None:
    critique = parse_critique(text, num_steps, finished)
    assert critique.text == text
    assert not (critique.abstained and critique.wrong_steps)
    return ABSTAIN if critique.abstained else set(critique.wrong_steps)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Judgment: Yes", set()),
        ("Judgment: Yes\n" + boxed(""), set()),
        ("Judgment: Yes\n" + boxed("1"), ABSTAIN),
        ("Judgment: No\n" + boxed("1, 3"), {1, 3}),
        ("Judgment: No", ABSTAIN),
        ("Judgment: No\n" + boxed(" \n"), ABSTAIN),
        (boxed("2"), {2}),
        (boxed(""), set()),
        ("", ABSTAIN),
        ("I can't say.", ABSTAIN),
    ],
)
def test_table(text: str, expected: set[int] | None) -> None:
    assert outcome(text) == expected


@pytest.mark.parametrize("verdict", ["", "Judgment: Yes\n", "Judgment: No\n"])
@pytest.mark.parametrize(
    "listed", [boxed("8, 99"), boxed("none"), boxed("the second"), boxed("0-8"), "<incorrect_steps>1", boxed("-1")]
)
def test_any_verdict_abstains_on_an_unreadable_list(verdict: str, listed: str) -> None:
    assert outcome(verdict + listed) is ABSTAIN


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("Judgement: No", "no"),
        ("judgment : NO.", "no"),
        ("**Judgment:** No", "no"),
        ("**Judgment**: **No**", "no"),
        ("### Final Judgement: `No`", "no"),
        ("Judgment: the solution contains an error, so No", "no"),
        ("Judgment: Yes, there are no errors", "yes"),
        ("Judgment: is every step correct? Yes", "yes"),
        ("Judgment (Yes/No): No", "no"),
        ("Judgment\uff1aNo", "no"),
        ("Judgment: Yes. On reflection, Judgment: No", "no"),
        ("Judgment:\u00a0No", "no"),
        ("I have read it all, so my final judgment: No", "no"),
        ("I come to the judgment: yes", "yes"),
        ("Judgment: Yes\n\nWait.\nJudgment: No", "no"),
        ("Judgment: No\nJudgment: the student is careless", "no"),
        ("Judgment: Yes/No", None),
        ("Judgment: Not sure", None),
        ("In my judgment no step fails", None),
        ("Judgment:\nNo", None),
        ("Judgment: Ye\u017f", None),
    ],
)
def test_verdict_lines(line: str, verdict: str | None) -> None:
    assert outcome(f"{line}\n{boxed('3')}") == (ABSTAIN if verdict == "yes" else {3})
    if verdict is not None:
        assert outcome(line) == (set() if verdict == "yes" else ABSTAIN)


def test_the_last_yes_or_no_of_a_judgment_line_counts() -> None:
    assert not parse_critique("Judgment: at first no, in the end yes", 3).abstained
    assert parse_critique("Judgment: at first yes, in the end no", 3).abstained


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("0,3", {0, 3}),
        ("0 3", {0, 3}),
        ("<step_5>", {5}),
        ("<step_0>, <STEP_5> and < step_6 >", {0, 5, 6}),
        ("<step_5></step_5>", {5}),
        ("\n- <step_1>\n- <step_2>\n", {1, 2}),
        ("\n- 1\n- 2\n", {1, 2}),
        ("2-4", {2, 3, 4}),
        ("<step_2>-<step_4>", {2, 3, 4}),
        ("<step_2> \u2013 <step_4>, 7", {2, 3, 4, 7}),
        ("[1, 3].", {1, 3}),
        ("Step 2, step_3, steps 5-6", {2, 3, 5, 6}),
        ("**2**", {2}),
        ("007", {7}),
        ("1, 1", {1}),
        ("1, 9", {1}),
        ("5-9", {5, 6, 7}),
        ("[]", set()),
        ("4-2", ABSTAIN),
        ("2-4-6", ABSTAIN),
        ("2.5", ABSTAIN),
        ("1. <step_3>", ABSTAIN),
        ("step two", ABSTAIN),
        ("1 because 2+2=5", ABSTAIN),
        ("1, 1, 1, 1, 1, 1, 1, 1, 1", ABSTAIN),
        ("0-999999999", ABSTAIN),
        ("9" * 5000, ABSTAIN),
        ("\u0663", ABSTAIN),
        ("\u00a01,\u202f3\u00a0", {1, 3}),
        ("<step_1\u200b>\uff0c <step_3>\u3000", {1, 3}),
    ],
)
def test_lists(body: str, expected: set[int] | None) -> None:
    assert outcome(boxed(body)) == expected


@pytest.mark.parametrize(
    "after",
    [
        "Let me double check the judgment: yes, it's step 1.",
        "- To verify my judgement: yes. It holds.",
        "I checked; I stand by this Judgment: yes, step 1 fails.",
    ],
)
def test_prose_about_the_judgment_is_no_judgment(after: str) -> None:
    assert outcome(f"Judgment: No\n{boxed('1')}\n\n{after}") == {1}


def test_dropped_indices_are_counted() -> None:
    assert parse_critique(boxed("1, 8, 42"), STEPS) == Critique(False, frozenset({1}), 2, boxed("1, 8, 42"))
    assert parse_critique(boxed("8"), STEPS).dropped == 1
    assert parse_critique(boxed("6-9"), STEPS).dropped == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{boxed('1')} no: {boxed('2')}", {2}),
        (f"{boxed('1')}\nJudgment: No", ABSTAIN),  # the list must come after the verdict
        (f"{boxed('1')}\nJudgment: No\n{boxed('2')}", {2}),
        (f"{boxed('1')} <incorrect_steps> 2", {1}),
        (f"<incorrect_steps> {boxed('4')}", {4}),
        ("1</incorrect_steps>", ABSTAIN),
        ("<Incorrect_Steps>1</ incorrect_steps >", {1}),
        (f"Judgment: No {boxed('1')} trailing words, 2 of them", {1}),
        ("Judgment: Yes\n</incorrect_steps>", set()),
    ],
)
def test_last_closed_pair_after_the_verdict(text: str, expected: set[int] | None) -> None:
    assert outcome(text) == expected


@pytest.mark.parametrize("text", ["Judgment: Yes", "Judgment: No\n<incorrect_steps>1", "", "Judgment: No"])
def test_cut_answers_abstain(text: str) -> None:
    critique = parse_critique(text, STEPS, finished=False)
    assert critique.abstained and critique.truncated


def test_a_closed_list_survives_the_cut() -> None:
    critique = parse_critique(f"Judgment: No\n{boxed('1')} because", STEPS, finished=False)
    assert (critique.abstained, critique.truncated, critique.wrong_steps) == (False, False, {1})


@pytest.mark.parametrize(
    "text", ["<\nincorrect_steps>1</incorrect_steps>", "Judgment\n: No\n" + boxed("1"), "Judgment:\nYes"]
)
def test_nothing_is_joined_across_lines(text: str) -> None:
    assert outcome(text) == ({1} if boxed("1") in text else ABSTAIN)
    assert outcome(text.replace(": No", ": Yes")) == ({1} if boxed("1") in text else ABSTAIN)
