"""The table of a case: its comparisons, and the origin of every figure."""

from __future__ import annotations

import re
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import BOUND, LOGITS, content, entry, measured, rows_of

from bench.report.runs import Row
from bench.report.tables import Notes, case_table


def test_a_case_becomes_a_table():
    eager = entry("torch eager", 60.0, bound=10.0, extra_bytes=LOGITS, less="no log-probs")
    ours = entry("capo cpu", 12.0, 12.5, 13.0, bound=10.0, extra_bytes=3 * 2**20)
    assert case_table(measured(content(eager, BOUND, ours)), Notes()) == [
        "| provider | computes | ms, median [min, max] | times ours | share of the bound | GB/s | extra MiB "
        "| of the logits | error |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
        "| in-place multiply | bound | 10.0 | 0.800 | 100 % | 62.2 | 0 | 0 % | – |",
        "| **capo cpu** | ppo | 12.5 [12.0, 13.0] | 1 | 80 % | 49.8 | 3.00 | 1 % | 2.5e-07 |",
        "| torch eager¹ | ppo | 60.0 | 4.80 | 17 % | 10.4 | 297 | 100 % | 2.5e-07 |",
    ]


def test_providers_that_compute_the_same_are_compared():
    entropy = {"kind": "ppo + entropy"}
    found = measured(
        content(
            entry("capo cpu", 10.0),
            entry("capo cpu + entropy", 20.0, **entropy),
            entry("torch eager + entropy", 80.0, **entropy),
            entry("torch cross_entropy", 30.0, kind="cross-entropy"),
        )
    )
    rows = rows_of("\n".join(case_table(found, Notes())))
    assert rows["torch eager + entropy"]["times ours"] == "4.00"
    assert rows["torch cross_entropy"]["times ours"] == "3.00"  # compared with our plain loss, as ours computes more


def test_the_newest_run_gives_the_rows_and_the_previous_one_the_changes():
    first = content(entry("capo cpu", 40.0, bound=10.0), entry("trl", 90.0, bound=10.0), day=1)
    second = content(entry("capo cpu", 20.0, bound=10.0), day=2)
    third = content(entry("capo cpu", 22.0, bound=10.0), entry("torch eager", 50.0, bound=10.0), day=3)
    rows = rows_of("\n".join(case_table(measured(third, first, second), Notes())))
    assert rows["**capo cpu**"]["change"] == "▲ 10.0 % slower"
    assert rows["torch eager"]["change"] == "–"
    assert "trl" not in rows


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        ([10.5, 10.5, 11.5, 11.5], "▲ 10.0 % slower (within the spread)"),
        ([10.9, 11.0, 11.0, 11.1], "▲ 10.0 % slower"),
        ([11.0], "▲ 10.0 % slower"),
    ],
)
def test_a_marked_change_within_the_spread_is_labelled(ms, text):
    """The middle half of the previous rounds is 9.4 to 10.6 ms."""
    old = content(entry("capo cpu", 9.0, 9.5, 10.5, 11.0, bound=5.0))
    new = content(entry("capo cpu", *ms, bound=5.0), day=2)
    assert rows_of("\n".join(case_table(measured(old, new), Notes())))["**capo cpu**"]["change"] == text


def test_a_step_has_its_tokens_per_second_and_its_mfu():
    step = {"kernel": "train_step", "flops_per_second": 2e12}
    found = measured(
        content(entry("bare GEMMs", 5.0, bound=5.0, kind="bound", **step), entry("capo", 10.0, bound=5.0, **step))
    )
    rows = rows_of("\n".join(case_table(found, Notes())))
    assert (rows["**capo**"]["MFU"], rows["**capo**"]["tokens/s"], rows["**capo**"]["TFLOP/s"]) == (
        "50 %",
        "51,200",
        "2.00",
    )
    assert rows["bare GEMMs"]["tokens/s"] == "–"
    assert "of the logits" not in rows["**capo**"]


TIMES = st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=4)


@settings(max_examples=40)
@given(st.lists(st.tuples(TIMES, st.integers(0, 2**40), st.floats(0, 1e-2)), min_size=1, max_size=4), TIMES)
def test_every_number_comes_from_the_file(peers, bound):
    middle = statistics.median(bound)
    entries = [
        entry(f"capo {'abcd'[i]}", *ms, bound=middle, extra_bytes=extra, error=error)
        for i, (ms, extra, error) in enumerate(peers)
    ]
    found = measured(content(entry("multiply", *bound, bound=middle, kind="bound", error=None), *entries))
    best = min(statistics.median(ms) for ms, _, _ in peers)
    for row, cells in zip(found.rows, case_table(found, Notes())[2:], strict=True):
        three, two = known_figures(row, best, middle)
        numbers = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?", cells)]
        strays = [n for n in numbers if not close(n, three, 0.0051) and not close(n, two, 0.051)]
        assert not strays, cells


def known_figures(row: Row, best: float, bound: float) -> tuple[list[float], list[float]]:
    """All figures of a row's cells, recomputed: those with three digits, and those with two."""
    ms = [1e3 * each for each in row.seconds]
    median = statistics.median(ms)
    three = [median, min(ms), max(ms), median / best, 2 * LOGITS / median / 1e6, row.extra_bytes / 2**20]
    return three, [100 * bound / median, 100 * row.extra_bytes / LOGITS, row.error or 0]


def close(shown: float, figures: list[float], to: float) -> bool:
    return any(abs(shown - exact) <= to * abs(exact) for exact in figures)
