"""Verdicts in a box (FAPO) and in words: valid ones, and answers without one."""

from __future__ import annotations

import re
import unicodedata

import pytest

from capo_fast.credit.neutralise import neutralise
from capo_fast.credit.verdicts import VERDICTS


@pytest.mark.parametrize(
    ("text", "finished", "wrong", "dropped"),
    [
        (r"Step 1 divides by 0, so \boxed{1}", True, {1}, 0),
        (r"all right: $\boxed{ -1 }$.", True, set(), 0),
        (r"the answer \boxed{7} is wrong: \boxed{2}", True, {2}, 0),
        (r"\boxed{3}", True, None, 1),
        (r"\boxed{-2}", True, None, 0),
        (r"\boxed{1, 2}", True, None, 0),
        (r"\boxed{\text{step } 1}", True, None, 0),
        ("Judgment: No\n<incorrect_steps>1</incorrect_steps>", True, None, 0),
        (r"the solution says \boxed{-1}, but", False, None, 0),
    ],
)
def test_the_last_box_names_the_first_wrong_step(text, finished, wrong, dropped):
    found = VERDICTS["fapo"].steps(text, 3, finished)
    assert (found.abstained, found.dropped, found.truncated) == (wrong is None, dropped, not finished)
    assert found.wrong_steps == (wrong or set())
    whole = VERDICTS["fapo"].whole(text, 3, finished)
    assert whole.abstained == found.abstained and whole.wrong_steps == (set(range(3)) if wrong else set())


@pytest.mark.parametrize(
    "text",
    [
        r"so \boxed{-1}",
        r"so \\ \boxed{-1}",
        "\\bo\u200bxed{-1}",
        "\uff3cboxed{-1}",
        "\\\u200b\\boxed{-1}",
        r"\ boxed{-1}",
    ],
)
def test_a_solution_s_own_box_is_no_verdict_when_quoted(text):
    shown = neutralise(VERDICTS["fapo"].shown(text))
    normalised = unicodedata.normalize("NFKC", shown).replace("\u200b", "").replace(" ", "")
    assert "boxed{-1}" in normalised and VERDICTS["fapo"].steps(normalised, 3).abstained
    assert VERDICTS["capo"].shown(text) == text, "a box is no verdict in this format"


def test_answers_that_structured_output_allows_parse():
    allowed = re.compile(VERDICTS["fapo"].regex)
    for text in ("\\boxed{-1}", "so\n\\boxed{12}"):
        assert allowed.fullmatch(text) and not VERDICTS["fapo"].steps(text, 13).abstained
    assert not allowed.fullmatch("\\boxed{-1} and more")


def test_a_verdict_on_the_whole_needs_no_list():
    short, capo = "The sum is 9.\nJudgment: No", VERDICTS["capo"]
    listed = f"{short}\n<incorrect_steps>1</incorrect_steps>"
    assert re.fullmatch(capo.regex, listed) and not re.fullmatch(capo.regex, short)
    for text in ("Judgment: Yes", short):
        assert re.fullmatch(capo.whole_regex, text) and not capo.whole(text, 2, True).abstained
    assert not re.fullmatch(capo.whole_regex, listed)


@pytest.mark.parametrize(
    ("text", "finished", "wrong"),
    [
        ("8 No", False, True),
        ("There is no mistake. Yes.", True, False),
        ("**NO**", True, True),
        ("Nothing is known", False, None),
    ],
)
def test_the_last_yes_or_no_counts(text, finished, wrong):
    found = VERDICTS["yes-no"].whole(text, 2, finished)
    assert (found.abstained, found.wrong_steps) == (wrong is None, {0, 1} if wrong else set())
    assert found.truncated == (wrong is None and not finished)
