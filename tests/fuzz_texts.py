"""Seeded hostile texts for the verifier and the critique parser. Tests draw hundreds, bench/ thousands."""

from __future__ import annotations

from random import Random

_COMMANDS = r"""
    \frac \dfrac \sqrt \boxed{ \text{ \left( \right) \binom \sum \int \lim \infty \pi \cdot \pm \cup \le \in \log \sin
    \begin{pmatrix} \end{pmatrix} \begin{cases} \\ \{ \} \% \! \, { } { } ( ) [ ] $ $$ \[ \] ^ _ ^{ _{ & = < > , ; : . !
    | / * + - 0 1 2 10 1/0 9^9^9^9 0.5 .5 1e9 1e-400 x y n f(x) i e pi and or #### answer is ** 10! 99999999 \x \
"""
_LATEX = [*_COMMANDS.split(), " ", "\n", "\0", "\ud800", "\u0663", "\uff11", "\u221a", "\u00bd", "\u200b", "\u03c0"]


def nested(opening: str, inside: str, closing: str, depth: int) -> str:
    return opening * depth + inside + closing * depth


HOSTILE_ANSWERS = [
    "1/0",
    "/2",
    "-./2",
    r"\frac{1}{0}",
    "0^0",
    "0^{-1}",
    "9^9^9^9",
    r"9^{9^{9^{9}}}",
    r"(9^{9999*9999}, 2)",
    "9**9**9**9",
    "10!!!!!!!!",
    "((9!)!)!",
    r"1000000000!",
    r"\binom{1000000000}{500000000}",
    r"\sqrt[10^9]{2}",
    r"\sqrt[999999999]{-2}",
    r"\sum_{n=1}^{10^9} n!",
    r"\prod_{k=1}^{99999} k^k",
    r"\int_0^{9^{9^9}} x dx",
    "1e999999999",
    "0." + "1" * 900,
    "7" * 100_000,
    r"\frac" * 1_000 + "12",
    nested(r"\frac{", "1", "}{2}", 1_000),
    nested(r"\sqrt{", "2", "}", 1_000),
    nested("x^{", "2", "}", 1_000),
    nested("{", "1", "}", 900),
    nested(r"\left(", "1", r"\right)", 400),
    nested(r"\text{", "1", "", 100),
    r"\boxed{" * 10_000,
    "}" * 100_000,
    "{" * 100_000,
    "$" * 100_001,
    r"\[" * 50_000,
    "1," * 50_000,
    "(1,2)," * 40,
    "1,111" * 20_000,
    "a " * 450 + "!",
    "answer is " * 10_000,
    "####" * 25_000,
    r"\boxed{1}, " * 10_000,
    "\\" * 100_000,
    "a" * 100_000,
    " " * 100_000,
    "=" * 500,
    "x=" * 149 + "1",
    "\ud800\0",
    "\u0663\u0664",
    "\uff11\uff12",
    r"\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}",
]


def latex(random: Random, longest: int = 12) -> str:
    """One answer: mostly short junk of LaTeX commands; sometimes boxed or repeated, or a cut hostile answer."""
    draw = random.random()
    if draw < 0.02:
        hostile = random.choice(HOSTILE_ANSWERS)
        return hostile[random.randrange(4) : len(hostile) - random.randrange(4)]
    pieces = "".join(random.choices(_LATEX, k=random.randint(1, longest)))
    if draw < 0.04:
        return (pieces * (100_000 // len(pieces)))[:100_000]
    return rf"so it is \boxed{{{pieces}}}." if draw < 0.5 else pieces


_CRITIQUE = [
    *["Judgment: ", "Judgement: ", "**Judgment:** ", "### Final judgment: ", "JUDGMENT\uff1a", "judgment (Yes/No): "],
    *[
        "Yes",
        "No",
        "Yes.",
        "**No**",
        "Yes/No",
        "no error",
        "Not sure",
        "\u662f",
        "\u5426",
        "\u6b65\u9aa4 3 \u9519\u4e86\u3002",
    ],
    *["<incorrect_steps>", "</incorrect_steps>", "<Incorrect_Steps>", "< / incorrect_steps >", "<incorrect\\_steps>"],
    *[
        "<step_1>",
        "</step_1>",
        "<step_2>-<step_4>",
        "step 3",
        "Steps 2 and 5",
        "1, 3",
        "1\u30013",
        "0-2",
        "4-2",
        "99",
        "-1",
    ],
    *[
        "none",
        "[]",
        "[1, 2]",
        "- 1\n- 2\n",
        "1. <step_3>\n",
        "* **Step 0** is right.\n",
        "because $2+2=5$",
        "2.5",
        "1-",
    ],
    *[
        "\n",
        "\r\n",
        "\n\n",
        " ",
        "\t",
        "```\n",
        "```xml\n",
        "`",
        "*",
        ", ",
        ": ",
        "\uff0c",
        "\u3002",
        "\u201c",
        "\u2013",
    ],
    *[
        "Let us look at every step. ",
        "Wait. ",
        "<think>",
        "</think>",
        "<|im_end|>",
        "\0",
        "\ud800",
        "\u0663",
        "\u200b",
        "9" * 50,
    ],
    *[
        "<incorrect_steps>1</incorrect_steps>",
        "<incorrect_steps>\n<step_2>, <step_5>\n</incorrect_steps>",
        "<",
        ">",
        "/",
    ],
]


def critique(random: Random) -> str:
    """A random critique, well-formed or not. One in a hundred repeats its text up to 100,000 characters."""
    text = "".join(random.choices(_CRITIQUE, k=random.randint(0, 20)))
    return (text * (100_000 // len(text)))[:100_000] if text and random.random() < 0.01 else text
