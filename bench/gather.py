"""One JSON and one table of the parts of bench/gpu.sh: `python -m bench.gather WORK OUT --seconds S`.

WORK holds `parts/NAME` ("exit-status seconds NAME") and the benches' `bench-NAME.json`; OUT gets `results.json` in
pytest-benchmark's format, with the parts beside it, and `results.md`. Exit status 1 where a part failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HEADER = "| case | provider | ms | of the bound | GB/s | TFLOP/s | extra MiB | error |\n" + "|---" * 8 + "|"


def parts_of(work: Path) -> list[dict[str, Any]]:
    lines = [path.read_text().split() for path in sorted((work / "parts").iterdir())]
    return [{"name": name, "exit_status": int(status), "seconds": int(seconds)} for status, seconds, name in lines]


def merged(work: Path) -> dict[str, Any]:
    """The benches' results as if one session had run them; empty where none ended."""
    found = [json.loads(path.read_text()) for path in sorted(work.glob("bench-*.json")) if path.stat().st_size]
    benchmarks = [each for one in found for each in one["benchmarks"]]
    return {**(found[0] if found else {}), "benchmarks": benchmarks}


def table(benchmarks: list[dict[str, Any]]) -> str:
    """Markdown, fastest first within a case."""
    lines, group = [HEADER], None
    for each in sorted(benchmarks, key=lambda each: (each["group"], each["stats"]["median"])):
        info = each["extra_info"]
        cells = [
            each["group"] if each["group"] != group else "",
            info["provider"],
            f"{each['stats']['median'] * 1e3:.3f}",
            _number(info["share_of_bound"], 1, ".0%"),
            _number(info["bytes_per_second"], 1e-9, ".0f"),
            _number(info["flops_per_second"], 1e-12, ".2f"),
            _number(info["extra_bytes"], 2**-20, ".0f"),
            _number(info["error"], 1, ".1e"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        group = each["group"]
    return "\n".join(lines)


def _number(value: float | None, factor: float, form: str) -> str:
    """Empty where there is nothing to say: not measured, or a kernel that the unit does not fit."""
    return format(value * factor, form) if value else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=int, required=True, help="that all parts took")
    arguments = parser.parse_args()
    results = merged(arguments.work) | {"parts": parts_of(arguments.work), "seconds": arguments.seconds}
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results["benchmarks"])
    (arguments.out / "results.md").write_text(text + "\n")
    failed = [part["name"] for part in results["parts"] if part["exit_status"]]
    print(f"{text}\n\n{len(results['parts'])} parts, {len(failed)} failed{': ' * bool(failed)}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
