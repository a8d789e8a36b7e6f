"""Masks the key that was sent to a server in the server's text."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 5
"""Characters of the shortest key that is masked: `no` or `none` as a key is no secret, and critiques contain it."""


def without_key(text: str, key: str) -> str:
    """The text with `***` for the key: plain, escaped for JSON or URLs, in hexadecimal digits, or in base64, there also
    as part of a longer text such as `Bearer KEY`.

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
    """The base64 characters that encode only these bytes, at each of the three alignments in a longer text, in both
    alphabets. Their neighbours encode a part of the first or last byte."""
    for before in range(3):
        letters = b64encode(bytes(before) + raw).decode()
        form = letters[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield form
        yield form.translate(str.maketrans("+/", "-_"))
