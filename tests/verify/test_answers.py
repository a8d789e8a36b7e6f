"""The rule verifier: extraction, equality, hostile text, time limits, and a public set of labelled pairs."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import fuzz_texts
import pytest
from fuzz_texts import HOSTILE_ANSWERS
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_fast.verify import VerifierPool, answers_equal, extract_answer
from capo_fast.verify import answers as verify
from capo_fast.verify.pool import VerifyTimeout

LABELLED = Path(__file__).parents[3] / "shared" / "data" / "answer_equiv.jsonl"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{7} or so. Put it in \boxed{}", "7"),
        (r"\boxed{1}, \boxed{2} and $\boxed{3}$", "3"),
        (r"#### 4 then \boxed{5}", "5"),
        ("5+5=10\n#### 10", "10"),
        ("The answer is 3.\n#### 4", "4"),
        ("The answer is 3. Then 9 more.", "3"),
        ("the answer is: 12 apples and 3 pears", "12"),
        (r"The answer is $\frac{5}{6}$.", r"\frac{5}{6}"),
        ("first the answer is 2, later the answer is 3", "3"),
        ("We have 7 and 8 apples left", "8"),
        ("it costs $1,234.50 in all", "1,234.50"),
        (r"Therefore $x \geq 5$ is the solution.", r"x \geq 5"),
        ("9*2=8\n\n8-9=9\n\nA:9", "9"),
        ("x+1", "x+1"),
        ("Evelyn", "Evelyn"),
        ("-3", "-3"),
        ("", None),
        ("there is nothing to be found here", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("5", "5.0"),
        (r"\boxed{\dfrac12}", "0.5"),
        ("1,000", "1000"),
        (r"10{,}000", "10000"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2"),
        (r"\text{(C)}", "C"),
        (r"45^\circ", "45"),
        (r"$\boxed{6,8}$", r"\boxed{6 \text{ and } 8}"),
        ("x = 3", "3"),
        (r"10\%", "10"),
        (r"(0,1]", r"\left( 0, 1 \right]"),
        ("0.333333", r"\frac{1}{3}"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"918\frac{1}{2}", "918.5"),
        (r"\boxed{1} and \boxed{2}", "2"),  # the last box by itself
        (r"$\boxed{(1,2)}$ and $\boxed{(3,4)}$", r"(3,4), (1,2)"),  # or all of them together
        ("9*2-9-9+9 is worked out so:\n\nA:9", "9"),
    ],
)
def test_equal(prediction: str, reference: str) -> None:
    assert answers_equal(prediction, reference) is True


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("5", "6"),
        ("", "5"),
        ("", ""),
        ("0.33", r"\frac{1}{3}"),
        ("0.0000001", "0.0000002"),
        ("2 1/2", "21/2"),
        ("(1,2)", "[1,2]"),
        ("x > 1", "x < 1"),
        ("1/0", "5"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        (r"\sqrt{3}", r"\sqrt{2}"),
        ("x+1", "x+2"),
        ("A", "B"),
        (r"\boxed{1} or \boxed{2}", "1"),
        (r"\boxed{2}", r"\boxed{1} and \boxed{2}"),
        (r"\boxed{32, 349}", "32349"),
    ],
)
def test_unequal(prediction: str, reference: str) -> None:
    assert answers_equal(prediction, reference) is False


@pytest.mark.parametrize("text", HOSTILE_ANSWERS, ids=range(len(HOSTILE_ANSWERS)))
def test_hostile_text_raises_the_time_limit_at_most(text: str) -> None:
    """The one exception that it may raise is the time limit's."""
    with suppress(VerifyTimeout):
        assert answers_equal(text, r"\frac{7}{3}") is False
        assert answers_equal("77", text) is False


def test_fuzz(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 texts of LaTeX's own pieces: a verdict or the time-out, and never an exception."""
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
        assert answers_equal(text, text) is True or not verify._key(answer)


def busy(*args: object, **kwargs: object) -> None:
    while True:
        with suppress(Exception):  # what the libraries do
            time.sleep(0.01)


def test_time_limit_on_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TIME_LIMIT_S", 0.2)
    monkeypatch.setattr(verify.math_verify, "parse", busy)
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 100)
        with pytest.raises(VerifyTimeout):
            answers_equal(r"\sin x+1", r"\sin x+2")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 90 and rung == []  # another's alarm is left as it was
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


def test_a_failure_to_read_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("unreadable")

    monkeypatch.setattr(verify.math_verify, "verify", fail)
    assert answers_equal(r"\sin u+v", r"v+\sin u") is False


def test_the_default_verifier_in_a_pool() -> None:
    with VerifierPool(workers=1) as pool:
        assert pool.check([(r"\boxed{1/2}", "0.5"), ("the answer is 3", "4")]) == [True, False]


@pytest.mark.skipif(not LABELLED.is_file(), reason="the labelled pairs are not here")
def test_labelled_pairs() -> None:
    rows = [json.loads(line) for line in LABELLED.read_text().splitlines()]
    rows = [row for row in rows if not row["flags"]][::4]  # a quarter: the whole set takes half a minute
    right = 0
    for row in rows:
        with suppress(VerifyTimeout):
            right += answers_equal(row["pred"], row["ref"]) == row["equal"]
    assert right >= 0.95 * len(rows)


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
