"""The page of conventions equals its command's output. .ci/run checks the page's column for Math-Verify."""

from __future__ import annotations

from bench.conventions import MARKERS, PAGE, PAIRS, own


def test_the_table_of_conventions_has_the_current_verdicts():
    table = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])[2].partition(MARKERS[1])[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    for line, (*cells, setting) in zip(rows, map(own, PAIRS), strict=True):
        made = f"| {' | '.join(cells)} | "
        assert line.startswith(made) and line.endswith(f" | {setting} |"), f"{made}: python -m bench.conventions"
