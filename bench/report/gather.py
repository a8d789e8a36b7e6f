"""One JSON file and one page of tables from benches of bench/gpu_more.sh: `python -m bench.report.gather WORK OUT`.

WORK contains the benches' `bench-NAME.json`, OUT `parts.jsonl` (bench/gpu/parts.sh). Writes OUT/results.json, in
pytest-benchmark's format plus the parts, for bench/results/<device>/, and OUT/results.md. Exit status 1 if no bench
completed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.report.runs import Machine, read_run
from bench.report.tables import Notes, case_table, case_title, overview


def parts_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]


def merged(work: Path) -> dict[str, Any]:
    """The benches' results as of one pytest session; empty if none completed."""
    found = [json.loads(path.read_text()) for path in sorted(work.glob("bench-*.json")) if path.stat().st_size]
    return {**found[0], "benchmarks": [each for one in found for each in one["benchmarks"]]} if found else {}


def page(results: dict[str, Any], out: Path) -> str:
    """The overview first, then a table per case."""
    machine = Machine(out, (read_run(out / "results.json", results),))
    notes, lines = Notes(), overview(machine)
    for cases in machine.kernels().values():
        for measured in cases:
            lines += ["", f"{measured.first.kernel}: {case_title(measured.first)}", "", *case_table(measured, notes)]
    return "\n".join([*lines, *notes.lines()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    results, parts = merged(arguments.work), parts_of(arguments.out)
    text = page(results, arguments.out) if results else "no bench completed"
    (arguments.out / "results.json").write_text(json.dumps(results | {"parts": parts}, indent=1) + "\n")
    (arguments.out / "results.md").write_text(text + "\n")
    print(text)
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
