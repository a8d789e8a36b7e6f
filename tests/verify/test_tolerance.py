"""Answers within an absolute tolerance."""

from __future__ import annotations

import time

import pytest

from capo_fast.verify import VerifierPool, tolerance, values
from capo_fast.verify.functions import Item, VerifyTimeout
from capo_fast.verify.tolerance import within


@pytest.mark.parametrize(
    ("answer", "reference", "error", "near"),
    [
        (r"2.8 \times 10^{11}", "2.75e11", 1e10, True),
        ("0.34", r"\frac{1}{3}", 0.01, True),
        ("x = 4.13", "4.2", 0.1, True),
        (r"4.13\%", "4.2", 0.1, True),
        ("4.0 cm", "4.2", 0.1, False),
        ("1, 2.05", "1.01, 2", 0.1, True),
        ("2.05, 1", "1.01, 2", 0.1, False),
        ("1", "1, 2", 5.0, False),
        ("x", "4.2", 5.0, False),
        ("1" + "$" * 1000, "1", 5.0, False),  # too long to be parsed
        (r"2\sqrt{2}", "2.83", 0.01, True),
        ("2.83", r"2\sqrt{2}", 0.01, True),
        (r"3\sqrt{2}", "2.83", 0.01, False),
        (r"\frac{\pi}{3}", "1.05", 0.01, True),
        (r"\sqrt{3}/2", "0.87", 0.01, True),
        ("e^{2}", "7.4", 0.1, True),
        (r"2\sqrt{2} \text{ cm}", "2.83", 0.01, True),
        (r"2\sqrt{2}, \pi", "2.83, 3.14", 0.01, True),
        (r"\pi, 2\sqrt{2}", "2.83, 3.14", 0.01, False),
        (r"x \approx 2.83", "2.829", 0.01, True),
        (r"x \approx 9.83", "2.829", 0.01, False),
        (r"2\sqrt{2} \approx 2.828", "2.83", 0.01, True),
        (r"2\sqrt{2} \sim 2.828", "2.83", 0.01, True),
        (r"2\sqrt{2} \approx 9", "2.83", 0.01, False),  # Math-Verify's parser takes the first member
        (r"A = 2\sqrt{2}", "2.83", 0.01, True),
        (r"\sqrt{-8}", "2.83", 5.0, False),
        (r"\infty", "2.83", 5.0, False),
        (r"x > 2.83", "2.83", 5.0, False),
        (r"2\sqrt{2} \text{ or more}", "2.83", 5.0, False),
        ("1 2", "3", 0.1, False),  # latex2sympy adds them up
        ("9^{9^{9^9}}", "1", 0.1, False),
    ],
)
def test_an_absolute_tolerance(answer: str, reference: str, error: float, near: bool) -> None:
    assert within(answer, reference, error) is near


def test_an_answer_that_would_not_end_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerance, "real_constant", lambda text: pytest.fail(f"it evaluates {text}"))
    assert within("9^{9^{9^9}}", "1", 0.1) is False


def test_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerance, "TIME_LIMIT_S", 0.2)
    monkeypatch.setattr(values, "latex2sympy", lambda *args, **kwargs: time.sleep(5))
    with pytest.raises(VerifyTimeout):
        within(r"2\sqrt{2}+\sqrt{7}", "2.83", 0.01)


def test_in_a_pool_with_the_settings_of_a_run() -> None:
    """`reward.tolerance` is relative and is not bound to `error`."""
    settings = {"tolerance": 0.0, "percent": True}
    with VerifierPool(1, fn="capo_fast.verify.tolerance:within", settings=settings) as pool:
        items = [Item(r"2\sqrt{2}", "2.83", {"error": error}) for error in (0.01, 0.0001)]
        assert pool.check(items) == [True, False]
