"""Words in answers: units, which are dropped by convention, and words that change the meaning of an answer."""

from __future__ import annotations

import re

from capo_fast.verify.parts import split


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTIONS = _set(
    "lcm gcd max min det rank tr dim ker arg sgn deg mod erf var cov adj diag span inf sup lim sinh cosh tanh"
)
_SHORT_UNITS = _set(
    "mm cm dm km nm pm um in ft yd mi lb oz kg mg hr kJ kW Hz Pa ms ns eV ml mL cc pc ly sq cu gm rs AU dB"
)
_LETTER_UNITS = "mgshLlJNWVAKCF"
_SHORT_WORDS = _set(
    """
    the and for not all one two six ten yes odd any how its who was are has man men day way win red tie pen box cup egg
    toy hot big old new low top bob amy tom sam may sun mon tue wed thu fri sat no or if is of at to an by on so it be
    as am up out per cow dog cat pig hen ant bee car bus usd eur gbp cny jpy inr min sec mph kph rpm mol gal rad pts ton
    """
)
"""Words of two or three letters; others of that length are products of unknowns."""
_WORD = re.compile(r"(?<![\\A-Za-z_{])[A-Za-z]{2,}(?![A-Za-z])")
_TAIL = re.compile(
    r"(?:(?P<word>(?<![\\A-Za-z])[A-Za-z]{2,}\.?)|(?P<letter>(?<=[\s/.])[A-Za-z]|(?<=\d)m(?=\s*\^)))"
    r"(?P<power>\s*\^\s*\{?\s*-?\d\s*\}?)?[\s).,]*\Z"
)
_JOIN = re.compile(r"(?:\s*(?:/|\\cdot|-)\s*|\(\s*)\Z")
_NUMERIC = re.compile(r"(?:\\(?:frac|sqrt|pi|cdot|times)(?![a-z])|[-+*/^.,\d\s{}()])*")
_FACTOR = re.compile(r"(?:/|\\cdot|[-+*])\s*\Z")
_SUM = re.compile(r"(?<=[\w)}])\s*[-+]")
_MATHS = re.compile(r"[\d\\]|\A[b-hj-z]\Z")
_QUALIFIERS = _set(
    """
    or if except not no when where unless for all every at least most than between until with without modulo base and
    out is are was has does do even odd only to from in of because since exactly
    """
)
"""With one of these a number's words are not a unit: 2 or more is not 2."""
_OPPOSITES = [
    _set(group)
    for group in (
        "even odd", "more less fewer", "north south east west northeast northwest southeast southwest", "left right",
        "up down", "above below", "before after", "increase decrease", "increased decreased", "increasing decreasing",
        "gain loss", "profit loss", "positive negative", "clockwise counterclockwise anticlockwise", "am pm",
        "true false", "yes no", "maximum minimum", "max min", "rational irrational", "convex concave", "inside outside",
        "over under", "faster slower", "larger smaller", "bigger smaller", "greater smaller", "taller shorter",
        "older younger", "ahead behind", "closed open", "finite infinite", "forward backward", "inward outward",
        "red blue green black white", "boys girls", "men women", "heads tails", "win lose",
        "first second", "upstream downstream", "horizontal vertical", "noon midnight", "discount markup",
        "cheaper dearer",
        "january february march april may june july august september october november december",
        "monday tuesday wednesday thursday friday saturday sunday", "longer shorter", "upward downward",
        "upwards downwards", "northward southward eastward westward", "uphill downhill", "early late", "earlier later",
        "heavier lighter", "deeper shallower", "surplus deficit", "fast slow", "wins draws losses", "passed failed",
        "credits debits", "closer farther", "higher lower", "wider narrower", "hotter colder", "warmer cooler"
    )
]  # fmt: skip
_ARTICLES = {"the", "a", "an", "is", "are", "there", "it"}
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne)(?![a-z])")
_TOKEN = re.compile(r"\\?[A-Za-z]+|\d+(?:\.\d+)?|[^\s\w.,;:!?'\"{}()$]", re.ASCII)
_MAX_UNIT_WORDS = 5


def words(text: str) -> list[str]:
    """The words of an answer in lower case, without function names and products of two or three letters."""
    found = [match[0] for match in _WORD.finditer(text)]
    return [word.lower() for word in found if _is_word(word) and not (word in ("and", "or") and _RELATION.search(text))]


def _is_word(word: str) -> bool:
    if word in _FUNCTIONS:
        return False
    return len(word) > 3 or word in _SHORT_UNITS or word.lower() in _SHORT_WORDS


def without_unit(text: str) -> str:
    """An answer without the unit or the noun at its end; qualifying words stay.

    >>> [without_unit(text) for text in ("12 cm^2", "72 red cards", "9.8 m/s^2", "2 or more", "2x")]
    ['12', '72', '9.8', '2 or more', '2x']
    """
    rest, unit = text.strip(), list[str]()
    while len(unit) < _MAX_UNIT_WORDS and (tail := _TAIL.search(rest)) and _may_be_unit(rest[: tail.start()], tail):
        unit.insert(0, (tail["word"] or tail["letter"]).rstrip(".").lower())
        rest = _JOIN.sub("", rest[: tail.start()].rstrip()).rstrip()
    qualified = _QUALIFIERS & set(unit[:-1] if unit[-1:] == ["in"] else unit)  # 5 in is 5 inches
    return text if not unit or qualified or words(rest) or not _MATHS.search(rest) else rest


def _may_be_unit(before: str, tail: re.Match[str]) -> bool:
    r"""True for a word; a letter after a number that is no sum (2 m) or in a unit (m/s); m after x, y or z.

    A letter after another letter, or after an operator, is an unknown: \pi r^2 h, 2 \cdot h.
    """
    if tail["word"]:
        return bool(before.strip()) and (_is_word(tail["word"].rstrip(".")) or before.endswith("/"))
    if tail["letter"] not in _LETTER_UNITS:
        return False
    if tail["letter"] == "m" and re.search(r"\A[xyz]\s\Z", before):
        return True
    if in_a_unit := re.search(rf"(?<![\\A-Za-z])([A-Za-z]{{2,}}|[{_LETTER_UNITS}])(?:\s*\^\s*\d)?\s*/\s*\Z", before):
        return _is_number(before[: in_a_unit.start()]) or words(before) != []
    return _is_number(before)


def _is_number(text: str) -> bool:
    """True if a text is a number or a product of numbers without an operator after it."""
    return bool(_NUMERIC.fullmatch(text)) and not _FACTOR.search(text) and len(split(text, _SUM, True)) < 2


def opposite(a: list[str], b: list[str]) -> bool:
    """True if the words of two answers contain different members of an exclusive group: even and odd."""
    pairs = [(group & set(a), group & set(b)) for group in _OPPOSITES]
    return any(ours and theirs and ours != theirs for ours, theirs in pairs)


def same_phrase(a: str, b: str) -> bool:
    """True if two answers in words are the same except for case, articles, punctuation and plurals."""
    return _phrase(a) == _phrase(b)


def _phrase(text: str) -> list[str]:
    tokens = [token.lower() if len(token) > 1 else token for token in _TOKEN.findall(text)]
    return [token.removesuffix("s") if len(token) > 3 else token for token in tokens if token not in _ARTICLES]
