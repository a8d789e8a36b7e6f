"""Steps: the pieces of a response between blank lines, split at its generated tokens (CAPO, section 3.2).

[us] A response is split at two or more newlines; `\\r\\n` counts as one newline; pieces of white space alone are no
steps. The split uses the bytes of the generated tokens, never re-tokenised text: a decoder may change earlier
characters when a later token arrives, bytes don't change. A line break is one byte in UTF-8, so no character is ever
split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from capo_fast.records import StepSpans, unicode_text

_DELIMITER = re.compile(rb"(?:\r?\n){2,}")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_KNOWN_BYTES: WeakKeyDictionary[Any, dict[int, bytes]] = WeakKeyDictionary()


def split_steps(text: str) -> list[str]:
    """The steps of a plain text, as exact slices of it.

    It may find more steps than `step_spans` in the tokens of the same text: there a piece in which no token begins is
    no separate step.

    >>> split_steps("a = 1\\n\\nb = 2\\n\\n \\n\\nA: 2\\n")
    ['a = 1', 'b = 2', 'A: 2\\n']
    """
    data = text.encode("utf-8", "surrogatepass")
    return [data[start:end].decode("utf-8", "surrogatepass") for start, end in _pieces(data)]


def step_starts(token_ids: Sequence[int], tokenizer: Any) -> list[bool]:
    """[L], True on the first token of each step; see `step_spans`."""
    return list(step_spans(token_ids, tokenizer).starts)


def step_spans(token_ids: Sequence[int], tokenizer: Any) -> StepSpans:
    """The steps of a response of L generated tokens, with their texts for the critic.

    [us] A token belongs to the step of its first character, the delimiter to the step before it. So:
    - the first token always starts step 0; tokens before the first piece belong to step 0 as well;
    - a piece in which no token begins joins the step before it (its text too, with the delimiter between them);
    - a token without characters (end of sequence, special, unknown) stays in the step of the token before it;
    - a token that begins inside a character belongs to that character;
    - a response without any piece is one step (its text blank), an empty response has none.
    """
    chunks = _bytes_of(token_ids, tokenizer)
    data = b"".join(chunks)
    pieces = _pieces(data) or [(0, len(data))]
    starts, firsts = _begun(chunks, pieces)
    lasts = [first - 1 for first in firsts[1:]] + [len(pieces) - 1]
    spans = ((pieces[first][0], pieces[last][1]) for first, last in zip(firsts, lasts, strict=False))
    texts = (unicode_text(data[start:end].decode("utf-8", "replace")) for start, end in spans)
    return StepSpans(tuple(starts), tuple(texts))


def _begun(chunks: Sequence[bytes], pieces: Sequence[tuple[int, int]]) -> tuple[list[bool], list[int]]:
    """[L], True on the first token of each step, and the piece at which each step begins. chunks: the tokens' bytes."""
    starts: list[bool] = []
    firsts: list[int] = []
    begin = piece = 0
    for chunk in chunks:
        while piece + 1 < len(pieces) and pieces[piece + 1][0] <= begin:
            piece += 1
        in_new_piece = bool(firsts) and piece > firsts[-1] and begin < pieces[piece][1]
        starts.append(not firsts or (in_new_piece and chunk != b""))
        if starts[-1]:
            firsts.append(piece)
        begin += len(chunk)
    return starts, firsts


def _pieces(data: bytes) -> list[tuple[int, int]]:
    """Start and end of the pieces that are more than white space."""
    cuts = [0, *(cut for match in _DELIMITER.finditer(data) for cut in match.span()), len(data)]
    spans = zip(cuts[::2], cuts[1::2], strict=True)
    return [(start, end) for start, end in spans if data[start:end].decode("utf-8", "replace").strip()]


def _bytes_of(token_ids: Sequence[int], tokenizer: Any) -> list[bytes]:
    """The bytes that each token adds to the text; cached per tokenizer, which must not change afterwards."""
    known = _KNOWN_BYTES.setdefault(tokenizer, {})
    ids = [int(token_id) for token_id in token_ids]
    for token_id in set(ids) - known.keys():
        known[token_id] = _token_bytes(token_id, tokenizer)
    return [known[token_id] for token_id in ids]


def _token_bytes(token_id: int, tokenizer: Any) -> bytes:
    """The bytes of one token, none for a special one.

    A decoder may strip the leading space of a text, so the bytes are those added by repeating the token. If they are
    not valid UTF-8, they come from the token's spelling: `<0xE2>` (sentencepiece) or one letter per byte (byte-level
    BPE).
    """
    once, twice = (
        tokenizer.decode([token_id] * n, skip_special_tokens=True, clean_up_tokenization_spaces=False) for n in (1, 2)
    )
    text = twice[len(once) :]
    if "\ufffd" not in once:
        return text.encode("utf-8", "surrogatepass")
    spelling = tokenizer.convert_ids_to_tokens(token_id)
    if match := _BYTE_TOKEN.fullmatch(spelling):
        return bytes([int(match[1], 16)])
    if all(letter in _BYTE_OF_LETTER for letter in spelling):
        return bytes(_BYTE_OF_LETTER[letter] for letter in spelling)
    return text.encode("utf-8")


def _letters_of_bytes() -> dict[str, int]:
    """Byte-level BPE spells a printable byte as itself and the n-th other byte as chr(256 + n) (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_LETTER = _letters_of_bytes()
