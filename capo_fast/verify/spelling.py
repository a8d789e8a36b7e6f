"""One canonical spelling for the many of LaTeX, programs and plain text: an ordered table of rewritings.

Each row is (name, pattern, replacement); a row may rely on the rows above it. Rewriting keeps the meaning: an ambiguous
spelling is left unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from capo_fast.verify.parts import closing
from capo_fast.verify.unicode_maths import latex_of
from capo_fast.verify.vocabulary import TEXT_COMMANDS

_GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|omega|rho|tau"
_NAMES = "arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|ln|log|exp|max|min|gcd|lcm"
_TRIG = r"\\(sin|cos|tan|cot|sec|csc)(\^\{?\d\}?)?"
_DEGREE = r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|\\degree(?![a-z])|\bdeg(?:rees?)?\b)"
_DECIMAL = r"\d*\.\d+|\d+"
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "twelve": 12}
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_RADIANS = r"\\\1\2(\\frac{\3\\pi}{180})"
_STATED = r"(?i:(?:the\s+)?(?:final\s+)?(?:answer|total|result|value|sum)(?:\s+(?:is|equals)\b|\s*:)\s*:?)"
_MODULO = r"\\pmod\s*(\{?\d+\}?)"
_UNIT_PARTS = r"(?:[kcmnsghNJWKAVCP/\s]|\\cdot(?![a-z])|\^\{-?\d\}|\^\d)+"
_UNIT = rf"\\{TEXT_COMMANDS}\s*\{{\s*[A-Za-z]{{1,3}}\s*\}}(?:\^\{{?\d\}}?)?"
_INTEGER_NAME = (
    r"([kmn])\s*\\in\s*\\mathbb\{Z\}|(?:(?:any|an|all|every)\s+)?integers?\s+([kmn])|([kmn])\s+(?:is\s+)?an\s+integer"
)
_FEW = r"((?:-?\d{1,9},\s*){1,8}-?\d{1,9})"
_CONSTANT = r"(?:some|any|an)\s+(?:(?:real|arbitrary)\s+)?constants?\s+([A-Za-z])"
_NEXT_RESIDUE = r"([a-z])\s*\\equiv\s*(?=-?\d+(?:,\s*\d+)*\s*\\pmod\s*\1)"
_Replacement = str | Callable[[re.Match[str]], str]


def _repeating(match: re.Match[str]) -> str:
    """The fraction of a repeating decimal: 0.3(6) is 36 - 3 over 90."""
    whole, fixed, block = match[1], match[2], match[3]
    nines = int("9" * len(block) + "0" * len(fixed))
    return _as_frac(Fraction(int(whole + fixed + block) - int(whole + fixed), nines))


def _repeated(match: re.Match[str]) -> str:
    """The fraction of 0.1666...: the shortest block that ends the digits twice or more is repeated."""
    digits = match[2]
    block = re.search(r"(\d{1,6}?)\1+\Z", digits)
    if block is None or len(block[0]) < 3:
        return match[0]
    fixed = digits[: block.start()]
    nines = int("9" * len(block[1]) + "0" * len(fixed))
    return _as_frac(Fraction(int(match[1] + fixed + block[1]) - int(match[1] + fixed), nines))


def _fraction(match: re.Match[str]) -> str:
    return rf"\frac{{{match[1] or match[2]}}}{{{match[3] or match[4]}}}"


def _as_frac(value: Fraction) -> str:
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match[str]) -> str:
    return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}" if int(match[2]) < int(match[3]) else match[0]


def _font(match: re.Match[str]) -> str:
    """Unwraps a letter in an upright font; a word keeps spaces around it."""
    unit = match.string[match.start() - 1 : match.start()].isdigit() and match[1] not in "ei"
    return match[1] if len(match[1]) == 1 and not unit else f" {match[1]} "


def _dotted_block(match: re.Match[str]) -> str:
    """The repeating decimal whose block has a dot over its first and its last digit."""
    return rf"{match[1]}.{match[2]}\overline{{{match[3]}{match[4]}{match[5]}}}"


def _binomial(match: re.Match[str]) -> str:
    lower, upper = int(match[1]), int(match[2])
    return rf"\binom{{{lower}}}{{{upper}}}" if lower >= upper else match[0]


def _interval(match: re.Match[str]) -> str:
    return f"{'[' if match[1] == '[' else '('}{match[2]}{']' if match[3] == ']' else ')'}"


def _sequence(match: re.Match[str]) -> str:
    """All terms of an arithmetic sequence of integers with dots, if they are few."""
    first, second, *more = map(int, match[2].split(","))
    last, step = int(match[3]), second - first
    terms = list(range(first, last + (1 if step > 0 else -1), step)) if step and abs(last - first) < 50 else []
    known = [first, second, *more]
    whole = terms[: len(known)] == known and terms[-1] == last and len(terms) > len(known)
    return f"{match[1] or ''}{', '.join(map(str, terms))}{match[4] or ''}" if whole else match[0]


def _system(match: re.Match[str]) -> str:
    """The equations of a system, separated by commas; a function by cases is unchanged."""
    lines = [line.strip(" ,") for line in match[1].split("\\\\")]
    return ", ".join(lines) if all(re.fullmatch(r"[a-z]\s*=[^=&,]+", line) for line in lines) else match[0]


def _named_before(match: re.Match[str]) -> str:
    """Removes a remark whose letter is in the text before it."""
    letter = next(filter(None, match.groups()))
    return "" if letter in re.sub(r"\\[A-Za-z]+", " ", match.string[: match.start()]) else match[0]


def _same_unknown(match: re.Match[str]) -> str:
    return ", " if match.string.lstrip()[:1] == match[2] else match[0]


_ROWS: list[tuple[str, str, _Replacement]] = [
    ("emphasis", r"\A\s*(\*{1,3}|__)([^*_]+)\1\s*\Z", r"\2"),
    ("currencies", r"\A\s*(?:R|HK|NZ|[ACS])\\?\$\s*(?=\d)", ""),
    ("counters", r"(?<=\d)\s*[元円个人岁]\s*\Z", ""),
    ("doubled backslashes", r"\\\\(?=(?:d?frac|sqrt|text|pi|left|right|cdot|times|boxed|infty)\b)", r"\\"),
    ("layout", r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|\s*\\!\s*", ""),
    ("layout", r"\\(?:(?:display|text|script)style|limits)(?![a-z])", ""),
    ("colours", r"\\(?:textcolor|colorbox|color)\s*\{[^{}]*\}", ""),
    ("lines", r"\\(?:underline|uline|cancel)(?=\s*\{)", ""),
    ("colons", r"\\colon(?![a-z])|\\mathbin\s*\{\s*:\s*\}", ":"),
    ("quotes", r"\A\s*(?:\\?\"|``)(.*?)(?:\\?\"|'')\s*\Z", r"\1"),
    ("layout", r"\\(?:hspace|vspace|phantom|hphantom|label|tag)\*?\s*\{[^{}]*\}|\\phantom(?![a-z])", ""),
    ("a comma in braces", r"\{\s*,\s*\}", ","),
    ("spaces", r"(?<!\\)\\(?:[,;:>\s]|q?quad(?![a-z])|enspace(?![a-z])|thinspace(?![a-z]))|~|\s+", " "),
    ("old fonts", r"\{\s*\\(?:rm|bf|it|cal)\s+([^{}]*)\}", r"\\text{\1}"),
    ("old fonts", r"\\(?:rm|bf|it|sf|tt)(?![a-z])", " "),
    ("percent", r"\\?%|(?<=[\d}) ])\s*(?:\\%|\b(?:percent(?:age)?(?: points?)?|pct)\b\.?)", r"\\%"),
    ("percent in a font", rf"\\{TEXT_COMMANDS}\s*\{{\s*(?:\\%|percent(?:age)?|pct)\s*\}}", r"\\%"),
    ("colons", rf"(?<=\d)\s*\\{TEXT_COMMANDS}\s*\{{\s*:\s*\}}\s*(?=\d\d)", ":"),
    ("ohms", r"(?<=[\d}])\s+(?:[kM]|\\(?:text|mathrm)\s*\{\s*[kM]\s*\})?\s*\\Omega\s*\Z", " ohms"),
    ("micro", rf"(?<=[\d}}])\s*\\mu\s*\\{TEXT_COMMANDS}\s*\{{\s*([A-Za-z]{{1,3}})\s*\}}\s*\Z", r" micro\1"),
    ("units with powers", rf"(?<=[\d}}])\s*\\{TEXT_COMMANDS}\s*\{{(?=[^^]*\^){_UNIT_PARTS}\}}\s*\Z", ""),
    ("units over units", rf"(?<=[\d}}])\s*\\[dt]?frac\s*\{{\s*{_UNIT}\s*\}}\s*\{{\s*{_UNIT}\s*\}}\s*\Z", ""),
    ("ordinals", rf"(?<=\d)(?:\^\s*\{{?\s*)?(?:\\{TEXT_COMMANDS}\s*\{{\s*)?(?:st|nd|rd|th)\b\s*\}}?\}}?(?=\s*\Z)", ""),
    ("fonts", rf"\\{TEXT_COMMANDS}\s*\{{([^{{}}]*)\}}", _font),
    ("fonts in fonts", rf"\\{TEXT_COMMANDS}\s*\{{([^{{}}]*)\}}", _font),
    ("a stray backslash", r"(?<!\\)\\(?=\d)", ""),
    ("dollars", r"\\?\$|[€£¥₹]|\\(?:pounds|euro)(?![a-z])|\bUS(?=\s*\d)", " "),
    ("currency codes", r"\b(?:USD|EUR|GBP|CAD|AUD|CNY|RMB|INR|Rs)\.?(?=\s*\d)", " "),
    ("maths delimiters", r"\\[][()]", " "),
    ("spaces", r"\s+", " "),
    ("fractions", r"\\[dtc]frac(?![a-z])", r"\\frac"),
    ("binomials", r"\\[dt]binom(?![a-z])", r"\\binom"),
    ("binomials", r"\A\s*C_\{?(\d+)\}?\^\{?(\d+)\}?\s*\Z", _binomial),
    ("binomials", r"\A\s*(?:\{\s*\})?\^?\{?(\d+)\}?\s*C_?\{?(\d+)\}?\s*\Z", _binomial),
    ("bare binomials", r"\\binom\s*(\d)\s*(\d)", r"\\binom{\1}{\2}"),
    ("binomials", r"\{\s*([^{}]+?)\s*\\choose\s*([^{}]+?)\s*\}", r"\\binom{\1}{\2}"),
    ("over", r"\{\s*([^{}]+?)\s*\\over\s*([^{}]+?)\s*\}", r"\\frac{\1}{\2}"),
    ("bare fractions", r"\\frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})", _fraction),
    ("bare roots", r"\\sqrt\s*(\d|[A-Za-z])(?![\w{])", r"\\sqrt{\1}"),
    ("number sets", r"\\mathbb\s*([A-Z])(?![a-z])", r"\\mathbb{\1}"),
    ("number sets", r"\A\s*(?:the set of )?(?:all )?real numbers\s*\Z", r"\\mathbb{R}"),
    ("bases", r"(?<=\d)\s*_\s*\{\s*\(\s*(\d+)\s*\)\s*\}", r"_{\1}"),
    ("bases", rf"_\s*\{{?\s*({'|'.join(_BASES)})\s*\}}?\s*\Z", lambda m: f"_{{{_BASES[m[1]]}}}"),
    ("logarithms", r"\\log\s*_\s*(?:\{\s*e\s*\}|e(?![a-z]))", r"\\ln "),
    ("logarithms", r"\\lg(?![a-z])", r"\\log_{10}"),
    ("comparisons", r"\\leq(?:q|slant)?(?![a-z])|<=|=<", r"\\le "),
    ("comparisons", r"\\geq(?:q|slant)?(?![a-z])|>=", r"\\ge "),
    ("comparisons", r"\\neq(?![a-z])|!=|\\not\s*=", r"\\ne "),
    ("comparisons", r"\\lt(?![a-z])", "<"),
    ("comparisons", r"\\gt(?![a-z])", ">"),
    ("not in", r"\\not\s*\\in(?![a-z])", r"\\notin "),
    ("braces", r"\\lbrace(?![a-z])", r"\\{"),
    ("braces", r"\\rbrace(?![a-z])", r"\\}"),
    ("angle brackets", r"\\langle(?![a-z])|\\lparen(?![a-z])", "("),
    ("angle brackets", r"\\rangle(?![a-z])|\\rparen(?![a-z])", ")"),
    ("bars", r"\\[lr]?vert(?![a-z])|\\mid(?![a-z])", "|"),
    ("the empty set", r"\\varnothing(?![a-z])|\A\s*\\\{\s*\\\}\s*\Z", r"\\emptyset "),
    ("Greek variants", r"\\var(epsilon|phi|theta|rho|sigma|pi)(?![a-z])", r"\\\1 "),
    ("complements", r"\\(?:backslash|smallsetminus)(?![a-z])", r"\\setminus "),
    ("dots", r"\\(?:dots[cbmio]?|ldots|cdots)(?![a-z])|\.\.\.+", r"\\ldots "),
    ("repeating decimals", r"(\d+)\.(\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", _dotted_block),
    ("repeating decimals", r"(\d+)\.(\d*)\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?", _repeating),
    ("repeating decimals", r"(\d+)\.(\d*)\((\d+)\)", _repeating),
    ("repeating decimals", r"(\d+)\.(\d{3,30})\s*\\ldots(?![a-z])", _repeated),
    ("segments", r"\\over(?:line|rightarrow|leftrightarrow|arc)\s*\{\s*([A-Z]{2,})\s*\}", r"\1"),
    ("sines in degrees", rf"{_TRIG}\s*[({{]\s*(-?(?:{_DECIMAL})){_DEGREE}\s*[)}}]", _RADIANS),
    ("sines in degrees", rf"{_TRIG}\s*(-?(?:{_DECIMAL})){_DEGREE}", _RADIANS),
    ("degrees", rf"(?<=[\w)}}\s]){_DEGREE}(?:\s*[CFK](?![A-Za-z]))?", " "),
    ("program powers", r"\*\*", "^"),
    ("program names", rf"(?<![\\A-Za-z])(?:np\.|math\.)?({_NAMES})(?=\s*[({{\\\d_]|\s[a-z]\b)", r"\\\1 "),
    ("program names", rf"(?<![\\A-Za-z])(pi|{_GREEK})(?![A-Za-z])", r"\\\1 "),
    ("program names", r"(?<![\\A-Za-z])log(2|10)\s*(?=\()", r"\\log_{\1}"),
    ("program names", r"(?<![\\A-Za-z])sqrt(\d+)", r"\\sqrt{\1}"),
    ("program calls", r"\\?(?<![A-Za-z])log\s*\((\w+),\s*(\w+)\)", r"\\log_{\2}(\1)"),
    ("program calls", r"(?<![\\A-Za-z])(?:binom|comb|nCr)\(\s*(\w+)\s*,\s*(\w+)\s*\)", r"\\binom{\1}{\2}"),
    ("program calls", r"(?<![\\A-Za-z])factorial\((\w+)\)", r"\1!"),
    ("products", r"(?<!_\d)(?<=\d)\s*(?=\(-?[\d.]+\))", r"\\cdot "),
    ("program names", r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
    ("inverse functions", r"\\?(?<![A-Za-z])a(sin|cos|tan)(?![a-z])", r"\\arc\1"),
    ("products", r"(?<=[\w)}])\s*\*\s*(?=[\w(\\{-])", r" \\cdot "),
    ("powers", r"\^\s*(-?\d{2,}|-\d|-[a-z])(?![\d.])", r"^{\1}"),
    ("scientific notation", r"(?<![\w.}])(\d+\.?\d*|\.\d+)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\cdot 10^{\2}"),
    ("times", r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\cdot "),
    ("times", r"(?<!\\nabla)(?<!\\nabla )\\times(?![a-z])(?!\s*\\vec)", r"\\cdot "),
    ("thousands", r"(?<![\d.])(\d{1,3}(?: \d{3})+)(?![\d/])", lambda m: m[1].replace(" ", "")),
    ("mixed numbers", r"(?<![\d.}/])(\d+) (\d+)/(\d+)(?![\d/.])", _mixed),
    ("mixed numbers", r"(?<=\d)\s+(?=\\frac\{\d+\}\{\d+\})", ""),
    ("no leading zero", r"(?<![\d\w.)}])\.(?=\d)", "0."),
    ("no digit after the point", r"(?<=\d)\.(?=\s*(?:\Z|[-+/*)},]))", ""),
    ("or", r"\\(?:lor|vee)(?![a-z])", " or "),
    ("and", r"\\(?:land|wedge)(?![a-z])", " and "),
    ("approximations", r"\A\s*(?:\\(?:approx|sim|simeq)(?![a-z])|(?:approx(?:imately)?|about|roughly)\b\.?)", ""),
    ("a stated answer", rf"\A\s*{_STATED}\s*(?=[-\d\\(])", ""),
    ("equal unknowns", r"\A\s*([a-z])\s*=\s*([a-z])\s*=\s*(-?\d+(?:\.\d+)?)\s*\Z", r"\1=\3, \2=\3"),
    ("open intervals", r"\A\s*([][])([^][]*[,;][^][]*)([][])\s*\Z", _interval),
    ("dots", rf"\A\s*(\\\{{)?\s*{_FEW},\s*\\ldots\s*,\s*(-?\d{{1,9}})\s*(\\\}})?\s*\Z", _sequence),
    ("systems", r"\A\s*\\begin\s*\{cases\}(.*)\\end\s*\{cases\}\s*\Z", _system),
    ("integers", rf"\s*[,;]?\s*\(?\s*(?:(?:where|for|with)\s+)?(?:{_INTEGER_NAME})\s*\)?\s*\Z", _named_before),
    ("constants", rf"\s*,?\s*\b(?:for|where|with)\s+{_CONSTANT}\s*\Z", _named_before),
    ("congruences", rf"\s*{_MODULO}\s*(?:,\s*|,?\s*\bor\s+){_NEXT_RESIDUE}", _same_unknown),
    ("plain braces", r"\A\s*\{([^{}]*,[^{}]*)\}\s*\Z", r"\\{\1\\}"),
    ("set builders", r"\A\s*\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*(?=.*\1)(.*)\\\}\s*\Z", r"\2"),
    ("plain braces", r"(\\in(?![a-z])|=)\s*\{([^{}]*,[^{}]*)\}\s*\Z", r"\1\\{\2\\}"),
    ("membership", r"\A\s*[a-z]\s*\\in(?![a-z])\s*(?=\\[{m]|[(\[])", ""),
    ("numbers in words", rf"(?<=\d)\s*({'|'.join(_SCALES)})\b", lambda m: rf"\cdot 10^{{{_SCALES[m[1]]}}}"),
    ("numbers in words", r"(?<=\d)\s*dozen\b", r"\\cdot 12"),
    ("signs in words", r"(?<![A-Za-z])(?:minus|negative)\s+(?=[\d\\])", "-"),
    ("signs", r"(?<![\w)}\]])([-+])\s+(?=[\d\\.])", r"\1"),
    ("a leading plus", r"\A\s*\+(?=\s*[\d\\.])", ""),
    ("ends", r"\A[\s,;]+|[\s,;:.?]+\Z|(?<!\\)\\\Z", ""),
    ("spaces", r"\s+", " "),
]  # fmt: skip
_TABLE = [(re.compile(pattern), replacement) for _, pattern, replacement in _ROWS]
_CALLS = {
    "sqrt": (r"\sqrt{", "}"), "cbrt": (r"\sqrt[3]{", "}"), "exp": ("e^{", "}"), "abs": ("|", "|"),
    "floor": (r"\lfloor ", r" \rfloor "), "ceil": (r"\lceil ", r" \rceil "), "ceiling": (r"\lceil ", r" \rceil "),
}  # fmt: skip
_CALL = re.compile(r"(?<![A-Za-z])(?:(?:np|math)\.)?\\?(sqrt|cbrt|exp|abs|floor|ceil(?:ing)?)\s*(?=[({])|\^\s*(?=\()")


def spelled(answer: str) -> str:
    r"""An answer in its canonical spelling.

    >>> [spelled(text) for text in (r"\dfrac12", "2 1/2", "sqrt(2)", "0.\\overline{3}", r"5\text{ cm}", "1 234")]
    ['\\frac{1}{2}', '2\\frac{1}{2}', '\\sqrt{2}', '\\frac{1}{3}', '5 cm', '1234']
    """
    answer = latex_of(answer)
    for pattern, replacement in _TABLE:
        answer = pattern.sub(replacement, answer)
    return _braced_calls(answer)


def _braced_calls(text: str) -> str:
    r"""sqrt(x), exp(x), abs(x), ^(x) and similar calls in LaTeX: \sqrt{x}, e^{x}, |x|, ^{x}."""
    done = 0
    while match := _CALL.search(text, done):
        before, after = _CALLS.get(match[1] or "", ("^{", "}"))
        opened = match.end()
        closed = closing(text, opened)
        if closed is None:
            done = opened
            continue
        text = text[: match.start()] + before + text[opened + 1 : closed] + after + text[closed + 1 :]
        done = match.start() + len(before)
    return text
