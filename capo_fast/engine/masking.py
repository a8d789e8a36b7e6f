"""Text of a server without the key that was sent to it."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 5
"""Letters of what is masked: `no` or `none` as a key is no secret, but a word of critiques."""


def without_key(text: str, key: str) -> str:
    """The text with `***` for the key: as it is, or in JSON, in an address, in hexadecimal digits or in base64, there
    also as a part of a longer text such as `Bearer KEY`.

    >>> without_key("found Bearer sk-a+b/c, aka sk-a%2Bb%2Fc", "sk-a+b/c")
    'found Bearer ***, aka ***'
    """
    found = _forms(key)
    return found.sub(MASK, text) if found else text


@lru_cache(maxsize=16)
def _forms(key: str) -> re.Pattern[str] | None:
    raw = key.encode()
    plain = {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key, safe=""), quote(key), quote_plus(key), raw.hex()}
    pattern = rf"{_any_of(plain)}|[\w+/-]?(?:{_any_of(_in_base64(raw))})[\w+/-]?={{0,2}}"
    return re.compile(pattern, re.IGNORECASE) if len(key) >= SHORTEST else None


def _any_of(forms: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))


def _in_base64(raw: bytes) -> Iterator[str]:
    """The letters that stand for these bytes alone, at each of three places in a longer text, in both alphabets. The
    letters beside them stand for a part of the first or last byte.
    """
    for before in range(3):
        letters = b64encode(bytes(before) + raw).decode()
        form = letters[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield form
        yield form.translate(str.maketrans("+/", "-_"))
