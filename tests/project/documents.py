"""The project's documents, and the fenced blocks and inline commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
AT_TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "AGENTS.md", "kernels/README.md")]
INSIDE = [path for folder in ("configs", "examples") for path in sorted((ROOT / folder).rglob("README.md"))]
DOCUMENTS = [*AT_TOP, *sorted((ROOT / "docs").glob("*.md")), *INSIDE]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:capo|python -m|make|torchrun) [^`\n]*--[^`\n]+)`")


class Block(NamedTuple):
    language: str
    """Empty if the fence names no language."""
    text: str
    line: int
    """Line number of its first line in the document."""


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path, *languages: str) -> Iterator[Block]:
    """The fenced blocks of these languages; without languages, all blocks."""
    text = document.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if not languages or match[1] in languages:
            yield Block(match[1], match[2], text.count("\n", 0, match.start()) + 2)


def folder_of_commands(document: Path) -> Path:
    """The working folder of its commands: an example's own folder, else the root."""
    return document.parent if document.is_relative_to(ROOT / "examples") else ROOT


def inline_commands(document: Path) -> list[str]:
    """Commands with flags in running text."""
    return INLINE.findall(FENCE.sub("", document.read_text(encoding="utf-8")))
