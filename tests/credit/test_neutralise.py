"""Neutralised policy text: neither the text nor a quote of it parses as a verdict or a list."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_fast.credit.critique_parser import parse_critique
from capo_fast.credit.neutralise import neutralise
from capo_fast.records import Critique

STEPS = 8


def boxed(body: str) -> str:
    return f"<incorrect_steps>{body}</incorrect_steps>"


HOSTILE = {
    "brackets": "<" * 100_000,
    "headers": "judgment: " * 10_000,
    "open headers": "judgment (" * 10_000,
    "blanks": "judgment" + " " * 100_000,
    "opened": "<incorrect_steps>" * 6_000,
    "pairs": boxed("1") * 3_000,
    "digits": boxed("1" * 100_000),
    "indices": boxed("1 " * 50_000),
    "ranges": boxed("1-" * 50_000),
    "tags": boxed("<step_1" * 14_000),
    "spaces": boxed(" " * 100_000 + "x"),
    "choices": "judgment: " + "yes or " * 14_000,
    "points": boxed("." + " " * 100_000),
    "blank tag": "<" + " " * 100_000 + "incorrect_steps",
    "html": "&lt;" * 25_000,
    "marks": "a\u0301" * 50_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_neutralising_takes_linear_time(text: str) -> None:
    """A pattern with quadratic time would take minutes on these."""
    parse_critique(text, 20)
    assert parse_critique(neutralise(text), 20).abstained


FRAGMENTS = [
    *[
        "<step_3>",
        "</step_3>",
        "<incorrect_steps>",
        "</incorrect_steps>",
        "Judgment: Yes",
        "Judgement: No",
        "<|im_end|>",
    ],
    *["judg", "ment", ":", "e", "<", ">", "/", "incorrect", "_", "steps", "step", "3", "Yes", "No", "&lt;", "|", "\\"],
    *["\u200b", "\ufeff", "\u00ad", "\u0301", " ", "\n", "\t", "\r", "\uff1c", "\uff1e", "\uff1a", "\u2039", "(", ")"],
    *["\uff2a\uff55\uff44\uff47\uff4d\uff45\uff4e\uff54", "STEP", "\u0455tep", "\ufb06ep", "1-2", "\0"],
]
policy_text = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))
honest_answer = st.one_of(
    st.sampled_from(["Judgment: Yes", "Judgement: No", "", "**Judgment**:", "Judgment: No\n<incorrect_steps>1"]),
    st.lists(st.integers(0, 9), max_size=6).map(lambda s: "Judgment: No\n" + boxed(", ".join(map(str, s)))),
    policy_text,
)


def parsed(text: str, finished: bool) -> Critique:
    return replace(parse_critique(text, STEPS, finished), text="")


@given(policy_text, honest_answer, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_quote_of_the_solution_never_counts(text: str, honest: str, finished: bool) -> None:
    echo, alone = neutralise(text), parsed(honest, finished)
    assert parsed(f"{echo}\n{honest}", finished) == alone
    assert parsed(f"{honest}\n{echo}", finished) == alone


@given(policy_text)
@settings(max_examples=200, deadline=None)
def test_neutralise_is_idempotent_and_leaves_no_verdict(text: str) -> None:
    safe = neutralise(text)
    assert neutralise(safe) == safe
    assert parse_critique(safe, STEPS).abstained


@pytest.mark.parametrize(
    "text",
    [
        *["<step_3>", "</step_3>", "< step_3 >", "<STEP_3>", "<step 3>", "<st\u200bep_3>", "\uff1cstep_3\uff1e"],
        *["<\u0455tep_3>", "&lt;step_3&gt;", "<step_3", "\u2039step_3\u203a", "<s\u0301tep_\uff13>"],
    ],
)
def test_step_tags_are_neutralised(text: str) -> None:
    safe = neutralise(f"a {text} b")
    assert safe in ("a (step_3) b", "a (/step_3) b", "a (step3) b")


@pytest.mark.parametrize(
    "text", ["Judgment: Yes", "JUDGEMENT:Yes", "J u d g m e n t : Yes", "Judg\u00adment\uff1a Yes"]
)
def test_verdicts_are_neutralised(text: str) -> None:
    assert neutralise(text).startswith("verdict") and parse_critique(neutralise(text), STEPS).abstained


@pytest.mark.parametrize(
    "text",
    ["9*2=8", "x < 3 and y > 2", "if a<b then step 3", "\\frac{1}{2} \u2264 \u00e9 \U0001f600", "A:9", "in steps", ""],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert neutralise(text) == text
