"""Digests: short names of contents, and pseudo-random numbers that depend on a key alone."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from xxhash import xxh3_128

CHUNK = 2**22
"""Bytes of a file per read and hash call."""
READERS = 8
"""Files that one process hashes concurrently."""
Digest = xxh3_128
"""Incremental hash of bytes (`update`, `hexdigest`). XXH3 detects damage at memory speed; it is not cryptographic."""


def digest(parts: Iterable[object]) -> str:
    """Twelve hex digits that depend on every part: bytes are hashed as they are, anything else by its `repr`.

    >>> digest([b"weights"]) == digest([b"wei", b"ghts"]) != digest(["weights"])
    True
    """
    state = blake2b(digest_size=6)
    for part in parts:
        state.update(part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def seed_of(*key: object) -> int:
    """A seed of 63 bits that depends on the key alone.

    >>> seed_of(0, "rollout-3-0-1", "gsm8k-7") == seed_of(0, "rollout-3-0-1", "gsm8k-7")
    True
    """
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def file_digest(path: Path) -> str:
    """The `Digest` of a file's bytes, 32 hex digits. Releases the GIL, so threads run in parallel. Raises OSError."""
    state, buffer = Digest(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def bytes_digest(parts: Iterable[bytes]) -> str:
    """The `Digest` of bytes in memory, 32 hex digits.

    >>> bytes_digest([b"weights"]) == bytes_digest([b"wei", b"ghts"]) != bytes_digest([b"weight"])
    True
    """
    state = Digest()
    for part in parts:
        state.update(part)
    return state.hexdigest()
