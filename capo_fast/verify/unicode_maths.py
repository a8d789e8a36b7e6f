"""Converts Unicode mathematics to ASCII and LaTeX."""

from __future__ import annotations

import re
import unicodedata

_LATEX = {
    "−": "-", "–": "-", "—": "-", "‒": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "÷": "/", "×": r"\times ",
    "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "±": r"\pm ", "∓": r"\mp ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ",
    "≡": r"\equiv ", "∼": r"\sim ", "∈": r"\in ", "∉": r"\notin ", "⊂": r"\subset ", "⊆": r"\subseteq ",
    "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∅": r"\emptyset ", "∞": r"\infty ", "∨": r"\lor ",
    "∧": r"\land ", "…": r"\ldots ", "⋯": r"\cdots ", "°": r"^{\circ}", "º": r"^{\circ}", "℃": r"^{\circ}C",
    "℉": r"^{\circ}F", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "∠": r"\angle ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "∶": ":", "→": r"\to ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "、": ",", "。": ".", "【": "[", "】": "]",
    "π": r"\pi ", "ϕ": r"\phi ", "ε": r"\epsilon ", "µ": r"\mu ",
}  # fmt: skip
_GREEK = "alpha beta gamma delta zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
_GREEK += " Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
_LATEX |= {
    unicodedata.lookup(
        f"GREEK {'SMALL' if name.islower() else 'CAPITAL'} LETTER {name.replace('mbd', 'md')}"
    ): f"\\{name} "
    for name in _GREEK.split()
}
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u2061\u2062\u2063\u2064"
_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_TABLE = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full width
    **str.maketrans(dict.fromkeys(_INVISIBLE, "") | dict.fromkeys(_SPACES, " ") | _LATEX),
}
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓ"
_TO_LINE = {
    ord(sign): plain for signs in (_RAISED, _LOWERED) for sign, plain in zip(signs, "0123456789+-=()nix", strict=True)
}
_SCRIPT = re.compile(f"([{_RAISED}]+)|([{_LOWERED}]+)")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_ROOT = re.compile(r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[A-Za-z]|\\frac\{\d+\}\{\d+\})|(\())?")
_FRACTION = re.compile("[¼½¾⅐-⅞↉]")
_STYLED = re.compile("[①-⑳\u3008-\u300b\ufe50-\ufe6b\U0001d400-\U0001d7ff]")
_MICRO = re.compile("[µμ](?=[A-Za-z])")


def latex_of(text: str) -> str:
    """The text with full-width forms, Unicode's fractions, roots, scripts, signs and spaces spelled in LaTeX.

    >>> latex_of("2½ − x² ≤ √12")
    '2\\\\frac{1}{2} - x^{2} \\\\le  \\\\sqrt{12}'
    """
    if text.isascii():
        return text
    text = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), _MICRO.sub("u", text))
    text = _FRACTION.sub(_fraction, text)
    text = _SCRIPT.sub(
        lambda m: f"^{{{m[1].translate(_TO_LINE)}}}" if m[1] else f"_{{{m[2].translate(_TO_LINE)}}}", text
    )
    return _ROOT.sub(_root, text).translate(_TABLE)


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _root(match: re.Match[str]) -> str:
    command = _ROOTS[match[1]]
    if match[2]:
        return f"{command}{{{match[2]}}}"
    return command + (match[3] or "")
