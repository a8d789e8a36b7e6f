"""One JSON and one page of tables from the parts of bench/gpu.sh: `python -m bench.report.gather WORK OUT --seconds S`.

WORK holds `parts/NAME` ("exit-status seconds NAME") and the benches' `bench-NAME.json`; OUT gets `results.json`, in
pytest-benchmark's format with the parts beside it, for bench/results/<device>/, and `results.md`. Exit status 1 where
a part failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.report.runs import Machine, read_run
from bench.report.tables import Notes, case_table, case_title, overview


def parts_of(work: Path) -> list[dict[str, Any]]:
    lines = [path.read_text().split() for path in sorted((work / "parts").iterdir())]
    return [{"name": name, "exit_status": int(status), "seconds": int(seconds)} for status, seconds, name in lines]


def merged(work: Path) -> dict[str, Any]:
    """The benches' results as if one session had run them; empty where none ended."""
    found = [json.loads(path.read_text()) for path in sorted(work.glob("bench-*.json")) if path.stat().st_size]
    return {**found[0], "benchmarks": [each for one in found for each in one["benchmarks"]]} if found else {}


def page(results: dict[str, Any], out: Path) -> str:
    """The overview first, then a table a case."""
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
    parser.add_argument("--seconds", type=int, required=True, help="that all parts took")
    arguments = parser.parse_args()
    results, parts = merged(arguments.work), parts_of(arguments.work)
    text = page(results, arguments.out) if results else "no bench ended"
    content = results | {"parts": parts, "seconds": arguments.seconds}
    (arguments.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (arguments.out / "results.md").write_text(text + "\n")
    failed = [part["name"] for part in parts if part["exit_status"]]
    print(f"{text}\n\n{len(parts)} parts, {len(failed)} failed{': ' * bool(failed)}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
