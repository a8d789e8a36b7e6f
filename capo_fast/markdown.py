"""Markdown tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = (), padded: bool = False
) -> str:
    r"""A table that ends with a newline. `right`: titles of right-aligned columns; `padded`: legible as plain text too.

    >>> print(markdown_table(["arm", "s"], [["a|b", "3"]], right={"s"}), end="")
    | arm | s |
    | --- | --: |
    | a\|b | 3 |
    """
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) if padded else 3 for i in range(len(head))]
    rules = ["-" * (width - 1) + (":" if title in right else "-") for title, width in zip(head, widths, strict=True)]
    lines = [head, rules, *rows]
    if padded:
        lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
