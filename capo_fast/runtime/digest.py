"""Digests: short names of contents, and numbers that look random but are made of a key alone."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from xxhash import xxh3_128

CHUNK = 2**22
"""Bytes of a file that are read and hashed at once."""
READERS = 8
"""Files that one process hashes side by side."""
Digest = xxh3_128
"""Of bytes that come in parts (`update`, `hexdigest`): XXH3 finds damage at the speed of memory and is no
defence against a forger."""


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
    """32 hex digits of a file's bytes, its `Digest`. Threads hash side by side. Raises OSError."""
    state, buffer = Digest(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def bytes_digest(parts: Iterable[bytes]) -> str:
    """The same of bytes in memory.

    >>> bytes_digest([b"weights"]) == bytes_digest([b"wei", b"ghts"]) != bytes_digest([b"weight"])
    True
    """
    state = Digest()
    for part in parts:
        state.update(part)
    return state.hexdigest()
