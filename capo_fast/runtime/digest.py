"""Digests: short names of contents, and numbers that look random but are made of a key alone."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from xxhash import xxh3_128

CHUNK = 2**22
"""Bytes of a file that are read and hashed at once."""


def digest(parts: Iterable[object]) -> str:
    """Twelve hex digits that change with any part: bytes as they are, anything else by its `repr`.

    >>> digest([b"weights"]) == digest([b"wei", b"ghts"]) != digest(["weights"])
    True
    """
    state = blake2b(digest_size=6)
    for part in parts:
        state.update(part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def seed_of(*key: object) -> int:
    """63 bits made of the key alone.

    >>> seed_of(0, "rollout-3-0-1", "gsm8k-7") == seed_of(0, "rollout-3-0-1", "gsm8k-7")
    True
    """
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def file_digest(path: Path) -> str:
    """32 hex digits of a file's bytes: XXH3, which finds damage at the speed of memory and is no defence against a
    forger. Threads hash side by side. Raises OSError."""
    state, buffer = xxh3_128(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()
