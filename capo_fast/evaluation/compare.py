"""Compares two results on the same problems: the paired difference of every shared score, its interval and p-value."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from capo_fast.errors import ConfigError
from capo_fast.evaluation.critics import is_of
from capo_fast.evaluation.store import first_difference
from capo_fast.markdown import markdown_table
from capo_fast.statistics import difference_interval, mean, paired_p

MAY_DIFFER = ("model", "weights", "limit", "requests", "data.date", "engine.dtype", "engine.max_model_len")
"""Settings that may differ: the model, its arithmetic, its template and the date that this prints. The questions
themselves are compared."""
OF_CRITICS = ("prompt", "critic", "endpoint")
"""Further settings, or sections of them, that may differ between two critics."""
BY_FIRST_ERROR = "accuracy by first error"


def read_results(path: Path) -> dict[str, Any]:
    """Reads a `results.json`, or the one in a folder. Raises ConfigError."""
    file = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(file.read_text())
        if not {"settings", "benchmarks"} <= set(results):
            raise ValueError("no settings and benchmarks in it")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: not the results of an evaluation: {error}") from None
    return dict(results)


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The differences of b from a. Raises ConfigError with the first difference of their protocols or problems.

    `differ` has the settings of critics that differ: both values by key. A row has: benchmark, metric, both means,
    difference b - a with its 95 % interval, p-value, pairs, and the number of problems left out because one side has no
    score (time-outs). The mean weighs every benchmark the same. Critics have rows of their F1, without interval and p.
    """
    differ = {}
    if all(results["settings"].get("command") == "critic_eval" for results in (a, b)):
        differ = _differences(a["settings"], b["settings"])
        a, b = map(_by_first_error, (a, b))
    difference = first_difference(*(_protocol(results, differ) for results in (a, b)))
    if difference is not None:
        key, one, other = difference
        raise ConfigError(f"the two can't be compared: {key} is {one!r} in the first and {other!r} in the second")
    pairs = {name: _pairs(name, a["benchmarks"][name], b["benchmarks"][name]) for name in a["benchmarks"]}
    rows = []
    for name, of in pairs.items():
        rows += [_row(name, metric, [found], missing) for metric, (found, missing) in of.items()]
        rows += _f1_rows(name, a["benchmarks"][name], b["benchmarks"][name])
    shared = [metric for metric in next(iter(pairs.values())) if all(metric in of for of in pairs.values())]
    if len(pairs) > 1:
        for metric in shared:
            groups, missing = zip(*(of[metric] for of in pairs.values()), strict=True)
            rows.append(_row("mean", metric, groups, sum(missing)))
    return {"models": [results["settings"]["model"] for results in (a, b)], "differ": differ, "rows": rows}


def _protocol(results: Mapping[str, Any], differ: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in results["settings"].items() if key not in (*MAY_DIFFER, *differ)}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings of two critics that differ."""
    found = [key for key in {**one, **other} if key.partition(".")[0] in OF_CRITICS and one.get(key) != other.get(key)]
    return {key: (one.get(key), other.get(key)) for key in found}


def _by_first_error(results: Mapping[str, Any]) -> dict[str, Any]:
    """A critic's results with the names of its metrics that do not depend on its voting."""
    return {**results, "benchmarks": {name: _renamed(entry) for name, entry in results["benchmarks"].items()}}


def _renamed(entry: Mapping[str, Any]) -> dict[str, Any]:
    metrics = list(entry["metrics"])
    names = {f"{BY_FIRST_ERROR}, greedy": metrics[0], f"{BY_FIRST_ERROR}, as configured": metrics[-1]}
    rows = {key: {new: row[old] for new, old in names.items()} for key, row in entry["by_problem"].items()}
    f1s = {f"F1, {which}": _f1(entry, metrics[place]) for which, place in (("greedy", 0), ("as configured", -1))}
    return {"metrics": dict.fromkeys(names), "by_problem": rows, "f1": f1s}


def _f1(entry: Mapping[str, Any], metric: str) -> float | None:
    """The F1 of the voting whose hits are this metric of `by_problem`."""
    [row] = [row for row in entry["votings"] if is_of(row, metric)]
    return row["f1"] and row["f1"]["value"]


def _f1_rows(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of two critics' F1. It is no mean over problems, so its difference has no interval."""
    rows = []
    for metric, one in a.get("f1", {}).items():
        other = b["f1"][metric]
        difference = None if one is None or other is None else other - one
        row = {"benchmark": name, "metric": metric, "a": one, "b": other, "difference": difference}
        rows.append(row | dict.fromkeys(("low", "high", "p")) | {"pairs": len(a["by_problem"]), "left_out": 0})
    return rows


Pairs = list[tuple[float, float]]


def _pairs(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Pairs, int]]:
    """By metric: the scores of the problems that both have, and the number of others."""
    ones, others = a["by_problem"], b["by_problem"]
    if set(ones) != set(others):
        odd = sorted(set(ones) ^ set(others))[0]
        raise ConfigError(f"the two can't be compared: {name} has problem {odd!r} in one of them only")
    metrics = [metric for metric in a["metrics"] if metric in b["metrics"]]
    found = {m: [(ones[i][m], others[i][m]) for i in ones if None not in (ones[i][m], others[i][m])] for m in metrics}
    return {metric: (pairs, len(ones) - len(pairs)) for metric, pairs in found.items()}


def _row(name: str, metric: str, groups: Sequence[Pairs], missing: int) -> dict[str, Any]:
    row: dict[str, Any] = {"benchmark": name, "metric": metric, "pairs": sum(map(len, groups)), "left_out": missing}
    if not all(groups):
        return row | dict.fromkeys(("a", "b", "difference", "low", "high", "p"))
    differences = [[b - a for a, b in group] for group in groups]
    low, high = difference_interval(differences) or (None, None)
    means = [mean([mean([pair[side] for pair in group]) for group in groups]) for side in (0, 1)]
    return row | {"a": means[0], "b": means[1], "difference": means[1] - means[0], "low": low, "high": high,
                  "p": paired_p(differences)}  # fmt: skip


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """The rows as a Markdown table."""
    a, b = comparison["models"]
    differ = "".join(f"{key}: {one} in A, {other} in B\n" for key, (one, other) in comparison["differ"].items())
    rows = [
        [row["benchmark"], row["metric"], *map(_cell, (row["a"], row["b"])), _difference(row), _p(row["p"]),
         str(row["pairs"]), str(row["left_out"])]
        for row in comparison["rows"]
    ]  # fmt: skip
    head = ["benchmark", "metric", "A", "B", "B - A", "p", "pairs", "left out"]
    return (
        f"A: {a}\nB: {b}\n{differ}\n{markdown_table(head, rows, padded=True)}\n"
        "In brackets 95 % intervals (Agresti and Min). p is two-sided and paired by problem: exact McNemar if every "
        "score is 0 or 1, else 10,000 seeded sign flips.\n"
        "p is not corrected for the number of rows. F1 is no mean over problems: its intervals are in results.md."
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "–"
    interval = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['difference']:+.3f}{interval}"


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
