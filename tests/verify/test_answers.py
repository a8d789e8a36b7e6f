"""The rule verifier: extraction, equality, hostile text, time limits, and public labelled pairs."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import fuzz_texts
import pytest
from fuzz_texts import HOSTILE_ANSWERS
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_fast.verify import VerifierPool, answers_equal, extract_answer, values
from capo_fast.verify import answers as verify
from capo_fast.verify.answers import judge, same_answer
from capo_fast.verify.functions import VerifyTimeout

DATA = Path(__file__).parents[3] / "shared" / "data"
KINDS: dict[str, list[dict[str, Any]]] = {}
for line in Path(__file__).with_name("kinds.jsonl").read_text(encoding="utf-8").splitlines():
    KINDS.setdefault((case := json.loads(line))["kind"], []).append(case)


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind: str) -> None:
    """Every case of a kind: response, reference and the mathematically right verdict."""
    wrong = [case for case in KINDS[kind] if answers_equal(case["response"], case["reference"]) != case["equal"]]
    assert wrong == []


@pytest.mark.parametrize(
    ("response", "reference", "rule"),
    [
        ("nothing here, at all, to be found", "5", "no answer"),
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", "same text"),
        (r"\boxed{B) 12}", "B", "choice"),
        (r"\boxed{0.5}", r"\frac12", "numbers"),
        (r"\boxed{x\equiv 1 \pmod 3}", r"x\equiv 2\pmod 3", "guard: congruence"),
        (r"\boxed{2, 1}", "1, 2", "list"),
        (r"\boxed{2, 1}", r"\{1, 2\}", "set"),
        (r"\boxed{(2, 1)}", "(1, 2)", "tuple"),
        (r"\boxed{[0, 1]}", "(0, 1)", "interval"),
        (r"\boxed{2 or more}", "2 or less", "opposite words"),
        (r"\boxed{5 north}", "5 south", "opposite words"),
        (r"\boxed{\sqrt8}", r"2\sqrt2", "values"),
        (r"\boxed{2\sin x\cos x}", r"\sin 2x", "Math-Verify"),
        (r"\boxed{9^{9^{9^9}}}", r"\sqrt2", "too large"),
        (r"\boxed{%s}" % ("7" * 1001), "7", "too long"),
    ],
)
def test_a_judgement_names_the_deciding_rule(response: str, reference: str, rule: str) -> None:
    assert judge(response, reference).rule == rule


def test_a_judgement_has_both_answers() -> None:
    judged = judge("so \\boxed{1/2}", "1 - 1/2 is\n#### 0.5")
    assert (judged.equal, judged.answer, judged.reference) == (True, "1/2", "0.5")


def test_a_cut_response_has_no_answer_without_a_closed_box() -> None:
    assert not answers_equal("6*7 = 42", "42", truncated=True)
    assert answers_equal(r"so \boxed{42}. Let me check: 6*", "42", truncated=True)


def test_a_response_equal_to_the_reference_is_right() -> None:
    for text in ("5 feet 10 inches", "10:00 AM", "all real numbers except 2", "the sequence does not converge"):
        assert answers_equal(text, text)


def test_same_answer_extracts_from_neither_text() -> None:
    """maj@k compares votes, and an answer in words does not equal its last number."""
    assert same_answer("1/2", "0.5") and same_answer("Player 2", r"\text{Player 2}")
    assert not same_answer("Player 2", "2") and not same_answer("2xy + 100", "100")


def test_conventions_are_settings() -> None:
    assert not answers_equal(r"\boxed{0.33}", r"\frac13")
    assert answers_equal(r"\boxed{0.33}", r"\frac13", tolerance=0.02)
    assert answers_equal(r"\boxed{(3.14, 1)}", r"(\pi, 1)", tolerance=0.01)
    assert not answers_equal(r"\boxed{4}", "5", tolerance=0.5)  # both exact
    assert answers_equal(r"\boxed{28}", r"28\%") and not answers_equal(r"\boxed{28}", r"28\%", percent=False)
    assert answers_equal(r"\boxed{0.28}", r"28\%", percent=False)


@pytest.mark.parametrize("text", HOSTILE_ANSWERS, ids=range(len(HOSTILE_ANSWERS)))
def test_hostile_text_raises_at_most_the_time_out(text: str) -> None:
    """The only exception allowed is VerifyTimeout."""
    with suppress(VerifyTimeout):
        assert answers_equal(text, r"\frac{7}{3}") is False
        assert answers_equal("77", text) is False


def test_fuzz(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 texts of LaTeX fragments give a verdict or a time-out, never another exception."""
    monkeypatch.setattr(verify, "TIME_LIMIT_S", 0.5)
    random = Random(0)
    texts = [fuzz_texts.latex(random, longest=6) for _ in range(500)]
    for text, other in zip(texts, ["7", *texts], strict=False):
        with suppress(VerifyTimeout):
            assert answers_equal(text, random.choice(["x+1", "(1,2)", other])) in (True, False)


@given(st.text(max_size=20))
@settings(max_examples=40, deadline=None)
def test_an_answer_equals_itself(text: str) -> None:
    if answer := extract_answer(text):
        assert same_answer(answer, answer) is True or not re.search(r"\w", answer)


def busy(*args: object, **kwargs: object) -> None:
    while True:
        with suppress(Exception):  # as the libraries do
            time.sleep(0.01)


def test_time_limit_on_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TIME_LIMIT_S", 0.2)
    monkeypatch.setattr(values, "latex2sympy", busy)
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 100)
        with pytest.raises(VerifyTimeout):
            answers_equal(r"\sin x+1", r"\sin x+2")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 90 and rung == []  # an alarm of other code is kept
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_works_off_the_main_thread() -> None:
    results: list[bool] = []
    pairs = [(r"\sin x+y", r"y+\sin x"), (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"), (r"\sin x", r"\cos x")]
    thread = threading.Thread(target=lambda: results.extend(answers_equal(*pair) for pair in pairs))
    thread.start()
    thread.join()
    assert results == [True, True, False]


def test_an_unparsable_answer_is_not_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("unreadable")

    monkeypatch.setattr(values, "latex2sympy", fail)
    assert answers_equal(r"\sin u+v", r"v+\sin u") is False


def test_the_default_verifier_in_a_pool() -> None:
    with VerifierPool(workers=1) as pool:
        assert pool.check([(r"\boxed{1/2}", "0.5"), ("the answer is 3", "4")]) == [True, False]


@pytest.mark.skipif(not DATA.is_dir(), reason="the labelled pairs are not here")
@pytest.mark.parametrize(
    ("file", "response", "reference", "goal"),
    [("answer_cases.jsonl", "solution", "reference", 0.97), ("answer_equiv.jsonl", "pred", "ref", 0.991)],
)
def test_labelled_pairs(file: str, response: str, reference: str, goal: float) -> None:
    """At least the goal's share of verdicts is right, and at most 1 % of different answers are accepted."""
    rows = [json.loads(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if not row.get("flags") and not row.get("settings")]
    wrong = [row for row in rows if answers_equal(row[response], row[reference]) != row["equal"]]
    assert len(wrong) <= (1 - goal) * len(rows)
    assert sum(not row["equal"] for row in wrong) <= 0.01 * sum(not row["equal"] for row in rows)


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        (r"1.7 \times 10^4", "1.7e4", True),
        ("17000", "1.7e4", True),
        ("so it is 3.3e-10 of it", "3.3e-10", True),
        ("so it is 3.3e-10 of it", "10", False),
        ("we get 1.7e+4 metres", "17000", True),
        (r"\boxed{2\cdot 10^{-3}}", "2e-3", True),
        ("3.3e-10", "3.4e-10", False),
        ("1e5", "10", False),
    ],
)
def test_scientific_notation(prediction: str, reference: str, equal: bool) -> None:
    assert answers_equal(prediction, reference) is equal
