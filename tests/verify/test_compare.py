"""The fast path of the verifier: what it settles, what it leaves alone, and that it says what Math-Verify says."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_fast.verify import answers as verify
from capo_fast.verify.compare import compare
from capo_fast.verify.latex_value import Scalar, value_of


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (r"\dfrac{6}{4}", r"\frac32"),
        (r"3\frac{1}{2}", r"\frac72"),
        (r"\frac{\sqrt{8}}{2}", r"\sqrt2"),
        (r"\sqrt[3]{8}", "2"),
        (r"x = 3", "3"),
        ("3", "k=3"),
        (r"\frac{28}{4} = 7", "7"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        (r"\frac{n(n+1)}{4}", r"\frac{1}{4} n(n+1)"),
        (r"\left( 0, \infty \right)", r"(0,\infty)"),
        (r"\{2, 1\}", "1, 2"),
        (r"1 \text{ and } \frac{1}{2}", r"\frac12, 1"),
        ("-2, -2", "-2"),
        ("(3,4), (1, 2)", "(1,2),(3,4)"),
        (r"\begin{pmatrix} 2/4 \\ 1 \end{pmatrix}", r"\begin{bmatrix} \frac12 \\ 1 \end{bmatrix}"),
        (r"45^\circ + x_1", r"x_{1} + 45"),
        ("i^2", "-1"),
    ],
)
def test_surely_equal(predicted: str, expected: str) -> None:
    assert compare(predicted, expected) is True


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (r"\sqrt{3}", r"\sqrt{2}"),
        ("2x+1", "2x+2"),
        ("x", "y"),
        ("3", "(3,4)"),
        ("1,2", "1,2,3"),
        ("(1,2)", "(1,2]"),
        ("(1,2)", "(2,1)"),
        ("x=3", "x=4"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
        (r"90 \text{ square units}", "36"),
        ("84 pounds", "7"),
        (r"0.5\pi", r"\pi"),
        (r"(0,\infty)", "(0,5)"),
        ("2^{18}", "4096"),
    ],
)
def test_surely_different(predicted: str, expected: str) -> None:
    assert compare(predicted, expected) is False


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (r"90 \text{ square units}", "90"),  # a convention: not ours to settle
        (r"10\%", "10"),
        ("2^{100}", "2^{100}+1"),
        (r"\sqrt{10^{12}+1}", "10^{6}"),
        ("10^{-13}", "10^{-14}"),
        (r"0.333333333333\pi", r"\frac{\pi}{3}"),
        (r"\sqrt[3]{-8}", "-2"),
        ("1/2x", r"\frac{1}{2x}"),
        ("2^10", "1024"),
        ("1,234", "1234"),
        (r"1011_2", "11"),
        ("x > 1", "1"),
        ("x >= 1", "1"),
        ("x=1, y=2", "2"),
        ("y=2x", "z=2x"),
        ("3", "2x+1=3"),
        ("(1,2)", "1,2"),
        ("2,000", "(2,0)"),
        (r"\sin x", "x"),
        ("Sunday", r"\text{Friday}"),
        (r"\frac{1}{0}", "1"),
        ("9^{9^{9^9}}", "1"),
        ("((((" * 200, "1"),
        ("{" * 17 + "1" + "}" * 17, "1"),
        ("\u0663", "3"),
        ("", ""),
    ],
)
def test_left_to_math_verify(predicted: str, expected: str) -> None:
    assert compare(predicted, expected) is None


ANSWERS = [
    "3",
    r"\frac{\sqrt{3}}{2}",
    r"\frac12\sqrt3",
    "x = 3",
    "(3,-3)",
    r"[-3, \infty)",
    "x^2-9",
    r"\begin{pmatrix} 3 \\ -3 \end{pmatrix}",
    r"3 \text{ cm}",
]


def test_agrees_with_math_verify() -> None:
    """What is settled here is settled as Math-Verify does, on all pairs of a few answers of every kind."""
    settled = {pair: compare(*pair) for pair in itertools.product(ANSWERS, repeat=2)}
    wrong = {pair for pair, same in settled.items() if same is not None and same != verify._math_verify(*pair)}
    assert wrong == set()
    assert sum(same is None for same in settled.values()) < len(settled) / 8


def _binary(operands: tuple[tuple[str, float], tuple[str, float]], sign: str) -> tuple[str, float]:
    (a, x), (b, y) = operands
    match sign:
        case "+":
            return rf"\left({a} + {b}\right)", x + y
        case "-":
            return f"({a}-{b})", x - y
        case "*":
            return rf"{a} \cdot {b}", x * y
        case "juxtaposed":
            return f"({a})({b})", x * y
        case "/":
            return rf"\frac{{{a}}}{{{b}}}", x / y if y else math.nan
    return rf"\sqrt{{({a})^2}}", abs(x)


numbers = st.integers(0, 99).map(lambda n: (str(n), float(n))) | st.just((r"\pi", math.pi))
formulas = st.recursive(
    numbers,
    lambda inner: st.builds(
        _binary, st.tuples(inner, inner), st.sampled_from(["+", "-", "*", "juxtaposed", "/", "sqrt"])
    ),
    max_leaves=8,
)


@given(formulas, formulas)
@settings(max_examples=150, deadline=None)
def test_values_of_generated_formulas(first: tuple[str, float], second: tuple[str, float]) -> None:
    """Against Python's own arithmetic on the same trees."""
    for latex, expected in (first, second):
        value = value_of(latex)
        if isinstance(value, Scalar):
            assert all(abs(x - expected) <= 1e-9 * value.scale for x in value.values)
        else:
            assert value is None and (math.isnan(expected) or len(latex) > 30)
    same, gap = compare(first[0], second[0]), abs(first[1] - second[1])
    assert same is None or same == (gap < 1e-6)
