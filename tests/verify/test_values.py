"""Values that SymPy compares: conditions on an unknown, and odd roots of negative numbers."""

from __future__ import annotations

import pytest

from capo_fast.verify.answers import same_answer


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        (r"x \ge 1 \text{ and } x \ne 2", r"[1,2)\cup(2,\infty)", True),
        (r"x \ge 1 \text{ and } x \ne 2", r"[1,\infty)", False),
        (r"x \ge 1 \text{ and } x \ne 2", r"(-\infty,2)\cup(2,\infty)", False),
        (r"x > 0 \text{ and } x \neq 1", r"(0,1)\cup(1,\infty)", True),
        (r"x \ne 1 \text{ and } x \ne 2", r"(-\infty,1)\cup(1,2)\cup(2,\infty)", True),
        (r"x \ne 1 \text{ and } x \ne 2", "(1,2)", False),
        (r"x>1 \text{ and } x<3", "(1,3)", True),
        (r"x>1 \text{ and } x<3", "(1,3]", False),
        (r"x<3 \text{ and } x>1", "1<x<3", True),
        (r"x<3 \text{ and } x>1", "1<x<4", False),
        (r"y>1 \text{ and } y<3", "1<x<3", False),
        (r"\{x \mid x>1, x \ne 2\}", r"(1,2)\cup(2,\infty)", True),
        ("|x|<2", "-2<x<2", True),
        (r"|x|\le 2", "-2<x<2", False),
        ("x^2<4", "-2<x<2", False),  # a problem, not its solution
    ],
)
def test_conditions_together(answer: str, reference: str, equal: bool) -> None:
    assert same_answer(answer, reference) is equal
    assert same_answer(reference, answer) is equal


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        (r"x>0, x\neq 1", r"(0,1)\cup(1,\infty)", True),
        (r"1<x<3, x \ne 2", r"(1,2)\cup(2,3)", True),
        (r"1<x<3, x \ne 2", r"1<x<2 \text{ or } 2<x<3", True),
        ("x>1, x<3", "(1,3)", True),
        ("x>1, x<3", "1<x<3", True),
        ("x>1, x>3", "x>3", False),  # answers, as one condition would be redundant
        ("x<1, x>3", r"\emptyset", False),
        ("x<1, x>3", r"x<1 \text{ or } x>3", True),
        ("x=1, y<2", "x=1, y<2", True),
        ("x=1, y<2", "x=1", False),
        ("x>1, y<2", "y<2, x>1", True),
        ("x>1, y<2", "(1,2)", False),
        ("x>1, y<2", "1<x<2", False),
    ],
)
def test_a_comma_joins_conditions_or_separates_answers(answer: str, reference: str, equal: bool) -> None:
    assert same_answer(answer, reference) is equal
    assert same_answer(reference, answer) is equal


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        (r"\sqrt[3]{-8}", "-2", True),
        (r"\sqrt[3]{-8}", "2", False),
        (r"\sqrt[3]{-8}", r"1+i\sqrt3", False),
        (r"\sqrt[5]{-32}", "-2", True),
        (r"-\sqrt[3]{4}", r"\sqrt[3]{-4}", True),
        (r"\sqrt[3]{-27}+5", "2", True),
        (r"\sqrt[3]{\sqrt[3]{-512}}", "-2", True),
        (r"\sqrt[3]{2-\sqrt5}", r"\frac{1-\sqrt5}{2}", True),
        ("(-8)^{2/3}", "4", True),
        (r"x\sqrt[3]{-8}", "-2x", True),
        (r"x\sqrt[3]{-8}", r"(1+i\sqrt3)x", False),
        (r"x>\sqrt[3]{-8}", "x>-2", True),
        (r"\sqrt[3]{1-x}", r"-\sqrt[3]{x-1}", True),
        (r"\sqrt[3]{1-x}", r"\sqrt[3]{x-1}", False),
        (r"\sqrt[3]{x^2-9x}", r"\frac{1+i\sqrt3}{2}\sqrt[3]{9x-x^2}", False),
        (r"\sqrt{-4}", "2i", True),
        (r"\sqrt[4]{-4}", "1+i", True),
        (r"\sqrt[6]{-64}", "-2", False),
    ],
)
def test_odd_roots_are_real(answer: str, reference: str, equal: bool) -> None:
    assert same_answer(answer, reference) is equal
    assert same_answer(reference, answer) is equal
