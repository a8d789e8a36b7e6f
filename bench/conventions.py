"""Verdicts of the rule verifier and of Math-Verify where conventions differ: the table of docs/verifier.md.

    python -m bench.conventions [--check]

It rewrites the table between the page's markers. `--check` compares the page with a new table and writes nothing; exit
status 1 if they differ. Bare Math-Verify is `parse` and `verify` on both texts, the reference in dollars.
"""

from __future__ import annotations

import argparse
import logging
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from bench.verifier import bare
from capo_fast.markdown import markdown_table
from capo_fast.verify.answers import Judgement, judge

PAGE = Path(__file__).parents[1] / "docs/verifier.md"
MARKERS = "<!-- conventions, by python -m bench.conventions -->", "<!-- end of conventions -->"


class Pair(NamedTuple):
    kind: str
    response: str
    reference: str
    setting: str = ""
    """For example `tolerance 0.01`, which changes the verdict."""
    truncated: bool = False


def boxed(kind: str, *pairs: tuple[str, ...]) -> list[Pair]:
    """Pairs of an answer, put into a box, and a reference; an optional third member is a setting."""
    return [Pair(kind, rf"\boxed{{{answer}}}", *rest) for answer, *rest in pairs]


PAIRS = [
    *boxed(
        "Units",
        ("5 km", "5"),
        ("5 km", "5 m"),
        (r"5\text{ cm}^2", "5"),
        (r"20^\circ C", "20"),
        ("\\$5.50", "5.50 dollars"),
        ("5 feet 10 inches", "5 feet 8 inches"),
        ("72 cards", "72"),
        ("2 h", "2"),
        (r"\pi r^2 h", r"\pi r^2"),
        ("8:30 a.m.", "8:30 p.m."),
    ),
    *boxed(
        "Percent",
        (r"28\%", "0.28"),
        (r"28\%", "28", "percent false"),
        ("0.28", r"28\%"),
        (r"33\frac{1}{3}\%", r"\frac{1}{3}"),
    ),
    *boxed(
        "Decimals and tolerance",
        ("0.333", r"\frac{1}{3}", "tolerance 0.01"),
        ("0.3333333", r"\frac{1}{3}"),
        ("3.14", r"\pi", "tolerance 0.01"),
        ("2.75e11", r"2.8 \times 10^{11}", "tolerance 0.02"),
        ("7", "7.0"),
        ("101", "100", "tolerance 0.02"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"\frac{1}{2^{54}}", r"\frac{1}{2^{55}}"),
    ),
    *boxed(
        "Mixed numbers and thousands",
        (r"2\frac{1}{2}", "2.5"),
        ("2 1/2", "2.5"),
        ("1,234", "1234"),
        ("1 234 567", "1234567"),
    ),
    *boxed(
        "Order and multiplicity",
        ("2, 1", "1, 2"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        (r"\{1, 1, 2\}", r"\{1, 2\}"),
        ("(2, 1)", "(1, 2)"),
        ("A(1, 2)", "(1, 2)"),
        ("A(1, 2)", "B(1, 2)"),
        ("1, 2", "(1, 2)"),
        ("1, 2", r"\{1, 2\}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1, 2)"),
        (r"\langle 1,2\rangle", "(1, 2)"),
        ("(3,4),(1,2)", "(1,2),(3,4)"),
    ),
    *boxed(
        "Several answers",
        ("1", "1, 2"),
        ("1, 2, 3", "1, 2"),
        ("1 and 2", "1, 2"),
        ("x < 1 or x > 3", "x < 1 and x > 3"),
        (r"\pm 1", "1, -1"),
        (r"x=1 \lor x=2", "1, 2"),
        ("x = 5", "5"),
        ("y = 5", "x = 5"),
    ),
    *boxed(
        "Intervals and inequalities",
        ("[0, 1]", "(0, 1)"),
        ("(0, 1)", "0 < x < 1"),
        (r"x > 2", r"(2, \infty)"),
        (r"\{x \mid x > 2\}", "x > 2"),
        (r"(-\infty, 1) \cup (1, \infty)", r"\mathbb{R} \setminus \{1\}"),
    ),
    *boxed(
        "Choices",
        ("(B)", "B"),
        (r"\text{Option B}", "B"),
        ("B. 12", "B"),
        ("b", "B"),
        ("12", "B"),
    ),
    *boxed(
        "Equalities",
        ("2 + 3 = 5", "5"),
        (r"x = \frac{6}{4} = 1.5", "1.5"),
        ("2x + y = 3", "y = 3 - 2x"),
        (r"\frac{1}{3} \approx 0.33", r"\frac{1}{3}"),
    ),
    *boxed(
        "Congruences and bases",
        (r"1 \pmod 4", r"5 \pmod{4}"),
        (r"x \equiv 1 \pmod 3", r"x \equiv 2 \pmod 3"),
        ("1011_2", "1011_3"),
        ("1011_2", "11"),
    ),
    *boxed(
        "Forms",
        (r"\frac{2}{4}", r"\frac{1}{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("pi/2", r"\frac{\pi}{2}"),
        ("2**10", "1024"),
        (r"\sin 30^\circ", r"\frac{1}{2}"),
        ("1:2", r"\frac{1}{2}"),
        (r"\text{Paris}", "paris"),
        (r"2 \text{ or more}", r"2 \text{ or less}"),
    ),
    Pair("Where the answer is", "so 3, then 4", "4"),
    Pair("Where the answer is", r"\boxed{3}? No, \boxed{4}", "4"),
    Pair("Where the answer is", r"\boxed{1} and \boxed{2}", "1, 2"),
    Pair("Where the answer is", r"<think>\boxed{5}?</think> The answer is 7.", "7"),
    Pair("Where the answer is", r"<think>so it is \boxed{5}", "5"),
    Pair("Where the answer is", "<answer>x+1</answer>", "x+1"),
    Pair("Where the answer is", "The answer is **5**.", "5"),
    Pair("Where the answer is", "The answer is 10 - 3 = 7 dollars.", "7"),
    Pair("Where the answer is", "1+1=2\n#### 2", "2"),
    Pair("Where the answer is", "#### Step 1\nIt is 5.", "5"),
    Pair("Where the answer is", "6*1=6, so", "6", truncated=True),
    Pair("Where the answer is", r"\boxed{6}, so", "6", truncated=True),
]


def table() -> str:
    """Markdown of all kinds."""
    head = ["response", "reference", "here", "by rule", "Math-Verify alone", "with a setting of `reward`"]
    kinds = groupby(PAIRS, key=lambda pair: pair.kind)
    return "\n".join(f"### {kind}\n\n{markdown_table(head, [row(pair) for pair in pairs])}" for kind, pairs in kinds)


def row(pair: Pair) -> list[str]:
    """The cells of `own`, with Math-Verify's verdict before the last."""
    *cells, setting = own(pair)
    alone = word(bare(pair.response, pair.reference))
    return [*cells, alone if alone == cells[2] else f"**{alone}**", setting]


def own(pair: Pair) -> list[str]:
    """Cells without Math-Verify's verdict."""
    found = judgement(pair)
    cut = " (cut by the length limit)" if pair.truncated else ""
    return [
        f"{code(pair.response)}{cut}",
        code(pair.reference),
        word(found.equal),
        found.rule,
        f"{setting_of(pair)}: {word(judgement(pair, **settings(pair)).equal)}" if pair.setting else "",
    ]


def judgement(pair: Pair, **settings: Any) -> Judgement:
    return judge(pair.response, pair.reference, pair.truncated, **settings)


def settings(pair: Pair) -> dict[str, Any]:
    name, value = pair.setting.split()
    return {name: value == "true" if name == "percent" else float(value)}


def setting_of(pair: Pair) -> str:
    return f"`{pair.setting.replace(' ', ': ')}`"


def word(equal: bool) -> str:
    return "equal" if equal else "different"


def code(text: str) -> str:
    return f"`{text}`".replace("\n", "` new line `")


def page(text: str) -> str:
    """The page with a new table."""
    before, rest = text.split(MARKERS[0])
    return f"{before}{MARKERS[0]}\n\n{table()}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.conventions", description="Makes the table of conventions.")
    parser.add_argument("--check", action="store_true", help="compare the page with a new table, write nothing")
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    check, text = parser.parse_args().check, PAGE.read_text()
    made = page(text)
    if check:
        return int(made != text)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
