"""Result files of `pytest bench/`: the reported figures, and the earlier runs that they are compared with.

A case's providers are timed in turns within one run, so all figures of a case come from one run: the newest that has
it, by the time in the file. A provider's change is relative to the newest earlier run with the same provider and case.
A folder contains the runs of one device at one number of threads.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.kernels.suites import SUITES

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
MARKED = 0.05
"""A larger relative change of the ratio of the time to the bound's is marked."""


class BrokenResults(Exception):
    """A result file that can't be read; the message names it."""


@dataclass(frozen=True)
class Row:
    """One provider of one case in one run, in SI units: the output of `measure.Bench.figures`, and the times."""

    kernel: str
    provider: str
    kind: str
    less: str
    case: str
    model: str
    tokens: int
    hidden: int
    vocab: int
    dtype: str
    regime: str
    bytes_per_second: float
    flops_per_second: float
    share_of_bound: float | None
    hot_seconds: float | None
    host_seconds: float | None
    extra_bytes: int
    error: float | None
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over_bound(self) -> tuple[float, float]:
        """First and third quartile of the times over the bound's median; equal for a single round."""
        assert self.share_of_bound
        seconds = self.seconds if len(self.seconds) > 1 else 2 * self.seconds
        least, _, most = statistics.quantiles(seconds, n=4, method="inclusive")
        bound = self.share_of_bound * self.median
        return least / bound, most / bound

    @property
    def ours(self) -> bool:
        return self.provider.startswith("capo")

    @property
    def is_bound(self) -> bool:
        return self.kind == "bound"

    @property
    def logits_bytes(self) -> int:
        return self.tokens * self.vocab * ITEM_BYTES[self.dtype]

    @property
    def is_step(self) -> bool:
        """True for a whole training step, False for a loss."""
        return self.kernel == "train_step"


@dataclass(frozen=True)
class Run:
    """One file of `pytest bench/ --benchmark-json`."""

    path: Path
    time: datetime
    suite: str
    device: str
    driver: str | None
    cuda: str | None
    threads: int
    versions: Mapping[str, str] = field(hash=False)
    commit: str
    dirty: bool
    rows: tuple[Row, ...]

    @property
    def machine(self) -> str:
        return f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}"

    def of_case(self, kernel: str, case: str) -> list[Row]:
        return [row for row in self.rows if (row.kernel, row.case) == (kernel, case)]


@dataclass(frozen=True)
class Change:
    """Relative change of the ratio of the time to the bound's; without bounds of the time. 0.07 is 7 % more."""

    share: float
    against_bound: bool
    within_spread: bool = False
    """True if the middle halves of both runs' rounds overlap, each over its bound's median."""

    @property
    def marked(self) -> bool:
        return self.against_bound and abs(self.share) > MARKED


@dataclass(frozen=True)
class Measured:
    """A case in its newest run: the bound first, then rows grouped by kind, the fastest of each kind first."""

    run: Run
    rows: tuple[Row, ...]
    before: Mapping[str, tuple[Run, Row]] = field(hash=False)
    """Earlier run that each provider is compared with."""

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def kind(self) -> str:
        """The kind of the case: the first kind that ours computes, without entropy or credit."""
        return next((row.kind for row in self.run.rows if row.ours and row.kernel == self.first.kernel), "")

    def ours(self, kind: str) -> Row | None:
        """Our fastest provider of `kind`; if there is none, because a peer computes less, of the case's kind."""
        kinds = {row.kind for row in self.rows if row.ours}
        wanted = kind if kind in kinds else self.kind
        return fastest(row for row in self.rows if row.ours and row.kind == wanted)

    def peer(self, kind: str) -> Row | None:
        """The peers' fastest provider of `kind`."""
        return fastest(row for row in self.rows if row.kind == kind and not row.ours)

    def change(self, row: Row) -> Change | None:
        if row.provider not in self.before:
            return None
        _, old = self.before[row.provider]
        if row.is_bound or not row.share_of_bound or not old.share_of_bound:
            return Change(row.median / old.median - 1, against_bound=False)
        (low, high), (old_low, old_high) = row.over_bound(), old.over_bound()
        overlap = low <= old_high and old_low <= high
        return Change(old.share_of_bound / row.share_of_bound - 1, against_bound=True, within_spread=overlap)


@dataclass(frozen=True)
class Machine:
    """The runs of one device at one number of threads, the newest first."""

    folder: Path
    runs: tuple[Run, ...]

    @property
    def newest(self) -> Run:
        return self.runs[0]

    def kernels(self) -> dict[str, list[Measured]]:
        """Cases by kernel, both in the suite's order, the most informative case first."""
        found: dict[str, list[Measured]] = {}
        for kernel, case in sorted({(row.kernel, row.case) for run in self.runs for row in run.rows}, key=self._place):
            found.setdefault(kernel, []).append(self._measured(kernel, case))
        return found

    def _place(self, of: tuple[str, str]) -> tuple[int, str, int, str]:
        """Sort key; kernels and cases that are no longer in the suite come last."""
        kernel, case = of
        cases = SUITES[self.newest.suite].cases
        kernels, places = list(cases), [str(each) for each in cases.get(kernel, ())]
        return _index(kernels, kernel), kernel, _index(places, case), case

    def _measured(self, kernel: str, case: str) -> Measured:
        run, *earlier = [run for run in self.runs if run.of_case(kernel, case)]
        rows = run.of_case(kernel, case)
        kinds = list(dict.fromkeys(row.kind for row in rows))
        rows.sort(key=lambda row: (not row.is_bound, kinds.index(row.kind), row.median))
        old = ((old, row) for old in reversed(earlier) for row in old.of_case(kernel, case))
        return Measured(run, tuple(rows), {row.provider: (old, row) for old, row in old})


def fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row.median, default=None)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def machines(runs: Iterable[Run]) -> list[Machine]:
    """One machine per folder, GPUs first. Raises BrokenResults if a folder has runs of several machines."""
    found: dict[Path, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.time, reverse=True):
        first = found.setdefault(run.path.parent, [run])[0]
        if run.machine != first.machine:
            others = f"{first.path.name} in the same folder of {first.machine}"
            raise BrokenResults(f"{run.path} is of {run.machine}, {others}: a folder is one device")
        if run is not first:
            found[run.path.parent].append(run)
    each = [Machine(folder, tuple(runs)) for folder, runs in found.items()]
    return sorted(each, key=lambda machine: (machine.newest.driver is None, machine.folder))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BrokenResults(f"{path}: no JSON ({error}); was the run interrupted, or is it still running?") from error


def is_run(content: Any) -> bool:
    """True if pytest-benchmark wrote it."""
    return isinstance(content, dict) and {"machine_info", "benchmarks", "commit_info"} <= content.keys()


def read_run(path: Path, content: Mapping[str, Any]) -> Run:
    """The run in a file of pytest-benchmark. Raises BrokenResults if `pytest bench/` did not write it."""
    try:
        machine, commit = content["machine_info"], content["commit_info"]
        time = datetime.fromisoformat(content["datetime"]).astimezone(UTC)
        about = {name: machine[name] for name in ("suite", "device", "driver", "cuda", "threads", "versions")}
        rows = tuple(map(_row, content["benchmarks"]))
        if about["suite"] not in SUITES:
            raise ValueError(f"suite {about['suite']!r}, wanted one of {', '.join(SUITES)}")
        return Run(path, time, commit=commit["id"], dirty=commit["dirty"], rows=rows, **about)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenResults(f"{path}: not a file of `pytest bench/`: {type(error).__name__}: {error}") from error


def _row(benchmark: Mapping[str, Any]) -> Row:
    info = benchmark["extra_info"]
    figures = {each.name: info[each.name] for each in fields(Row) if each.name != "seconds"}
    return Row(**figures, seconds=tuple(benchmark["stats"]["data"]))
