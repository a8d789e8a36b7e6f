"""BENCHMARKS.md from the results of `pytest bench/`: tables, plots and changes.

    pytest bench/ --benchmark-json bench/results/h200/2026-11-21.json      # on the machine to measure
    python -m bench.report                                                 # anywhere

A folder of bench/results/ is a device; each JSON file in it is a run of some or all benches. The figures of a case come
from its newest run, by the time in the file. Changes are relative to the run before it, if its file exists. To measure
the effect of a kernel change, run before and after into two files (`-k bench_policy_loss` for one kernel) and make the
report. To publish, commit the new file and remove the old one, or keep both to keep the marks.

A change is marked if the ratio of the time to the bound's time in the same run changed by more than 5 %: a slower
machine slows the bound too. "Within the spread" means that the middle halves of both runs' rounds still overlap.

Plots go to bench/results/<device>/plots/, which is emptied first. Dry runs and other JSON files are ignored and listed.
Exit status 1 if nothing is found or a file is broken.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report.plots import Plot, plots
from bench.report.runs import BrokenResults, Machine, Run, is_run, machines, read_json, read_run
from bench.report.tables import Notes, case_table, case_title, marked_changes, overview

INTRODUCTION = """\
# Benchmarks

Made by `python -m bench.report` from bench/results/; every figure is measured or computed from measured ones. To
repeat: `pytest bench/ --benchmark-json bench/results/<device>/<name>.json`, then `python -m bench.report`.

- A **case** is a model's head at T tokens: hidden size H, vocabulary V, a dtype. A **provider** is one implementation
  of the case: ours (**capo**), a peer's, or a **bound**, which does the same memory traffic or the same GEMMs and
  nothing else. Providers that could not run on a device have no row.
- All providers of a case are timed in turns within one run. Times are medians with [min, max] over the rounds. On a GPU
  the caches are cold; *hot* is the time with warm caches and *host* the time of the launches. **Times ours** is the
  time over that of our fastest provider of the same results; if we have none, over that of our plain loss.
- The **share of the bound** is the bound's time over the provider's. GB/s and TFLOP/s count the minimum traffic and
  operations for all T rows, even if a provider skips masked rows. For a training step the bound is the same number of
  operations in bare GEMMs, and the share is the MFU. A share above 100 % means that the bound's own calls are not the
  fastest here (the three GEMMs over all T on a CPU).
- **Extra MiB** is the peak memory above the memory in use before the call; **of the logits** is its ratio to the size
  of the logits [T, V].
- **The gate**: before timing, results and gradients are compared with float64 (for a training step: with the same step
  with head and loss in float32). *Error* is the largest relative error. A provider with a larger error than
  bench/kernels/measure.py allows is not timed.
- **Change** is relative to the run before it on the same device. It is the change of the ratio of the time to the
  bound's in the same run, marked ▲ slower or ▼ faster above 5 %; "within the spread" means that the middle halves of
  both runs' rounds still overlap. Without a bound, and for the bound itself, it is "time" and the plain change.
"""


ARMS = """\
Measured by `python -m bench.end_to_end`. Arms: **capo** is this trainer with GRPO, **capo-critic** with its critic,
**capo-eager** with the loss in plain torch, **capo-bf16** in bfloat16; **trl** is TRL's GRPOTrainer, which generates
with transformers, **trl-...** are other settings of it, and **trl+capo** is trl with our loss. Model, prompts,
rollouts, updates and threads are equal; `bench/end_to_end/__main__.py` lists the differences and describes each arm.
Medians over rounds [min, max]; ratios are to trl in the same round.
"""


@dataclass
class Found:
    """Content of the results folder."""

    runs: list[Run] = field(default_factory=list)
    end_to_end: dict[Path, Mapping[str, Any]] = field(default_factory=dict)
    """Files of bench.end_to_end and their content."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """Ignored files and the reasons."""


def find(results: Path) -> Found:
    """Every JSON file of every device's folder, classified by content."""
    found = Found()
    for path in sorted(results.glob("*/*.json")):
        content = read_json(path)
        if is_run(content):
            add_run(found, read_run(path, content))
        elif is_end_to_end(content):
            found.end_to_end[path] = content
        else:
            found.left_out[path] = "no result of `pytest bench/` or bench.end_to_end"
    return found


def add_run(found: Found, run: Run) -> None:
    if run.suite == "dry":
        found.left_out[run.path] = "a dry run: its times mean nothing"
    elif not run.rows:
        found.left_out[run.path] = "nothing in it was measured"
    else:
        found.runs.append(run)


def is_end_to_end(content: Any) -> bool:
    return isinstance(content, dict) and {"summary", "rounds", "work"} <= content.keys()


def about_run(run: Run) -> str:
    """Date, commit, driver, threads, versions."""
    dirty = " (dirty: with changes that are in no commit)" if run.dirty else ""
    parts = [f"{run.time:%Y-%m-%d %H:%M} UTC", f"commit {run.commit[:10]}{dirty}"]
    parts += [f"driver {run.driver}"] if run.driver else []
    parts += [f"CUDA {run.cuda}"] if run.cuda else []
    parts.append(f"{run.threads} thread{'s' * (run.threads != 1)}")
    return ", ".join([*parts, *(f"{name} {version}" for name, version in run.versions.items())])


def runs_used(machine: Machine, root: Path) -> list[str]:
    """Lines that list the runs with their kernels, and the runs that they are compared with."""
    cases = [measured for cases in machine.kernels().values() for measured in cases]
    gives = {run: [m.first.kernel for m in cases if m.run is run] for run in machine.runs}
    compared = {run for m in cases for run, _ in m.before.values()}
    lines = []
    for run, kernels in gives.items():
        what = [*dict.fromkeys(kernels), *(["what changes are against"] if run in compared else [])]
        lines += [f"- {about_run(run)}: {', '.join(what)} ([{run.path.name}]({link(run.path, root)}))"] if what else []
    return lines


def link(path: Path, root: Path) -> str:
    """Relative link from a page in `root`."""
    return Path(os.path.relpath(path, root)).as_posix()


def machine_section(machine: Machine, root: Path) -> list[str]:
    """The section of one device; writes its plots."""
    pictures = save_plots(machine)
    lines = [f"## {machine.newest.device}", "", *runs_used(machine, root), "", *overview(machine)]
    for kernel, cases in machine.kernels().items():
        notes = Notes()
        lines += ["", f"### {kernel}", ""]
        lines += [f"![{plot.title}]({link(path, root)})" for plot, path in pictures if plot.kernel == kernel]
        for measured in cases:
            lines += ["", f"#### {case_title(measured.first)}", "", *case_table(measured, notes)]
        lines += notes.lines()
    return lines


def save_plots(machine: Machine) -> list[tuple[Plot, Path]]:
    folder = machine.folder / "plots"
    for old in folder.glob("*.svg"):
        old.unlink()
    folder.mkdir(exist_ok=True)
    return [(plot, plot.save(folder)) for plot in plots(machine)]


def end_to_end_section(files: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Whole training steps of the trainer and of a peer, from the results of bench.end_to_end."""
    from bench.end_to_end.figures import page

    lines = ["", "## A step of training, end to end", "", *ARMS.splitlines()]
    for found in files.values():
        lines += ["", *page(found)]
    return lines


def write_report(results: Path, out: Path) -> list[str]:
    """Writes the page and the plots; returns lines to print. Raises BrokenResults."""
    found = find(results)
    devices = machines(found.runs)
    if not devices and not found.end_to_end:
        raise BrokenResults(
            "\n".join([f"{results}/<device>/ has no results; `pytest bench/` makes them", *left_out(found)])
        )
    lines = INTRODUCTION.splitlines()
    for machine in devices:
        lines += ["", *machine_section(machine, out.parent)]
    if found.end_to_end:
        lines += end_to_end_section(found.end_to_end)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [*(line for machine in devices for line in headline(machine)), *left_out(found), f"wrote {out}"]


def headline(machine: Machine) -> list[str]:
    marked = marked_changes(measured for cases in machine.kernels().values() for measured in cases)
    return [machine.newest.device, f"  {about_run(machine.newest)}", *(f"  {line}" for line in marked)]


def left_out(found: Found) -> list[str]:
    return [f"left out: {path}: {why}" for path, why in found.left_out.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("BENCHMARKS.md"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        print("\n".join(write_report(arguments.results, arguments.out)))
    except BrokenResults as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
