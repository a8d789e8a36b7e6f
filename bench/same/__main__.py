"""Compares the training of two commits: both run the cases on this machine, and results are compared byte for byte.

    python -m bench.same --base COMMIT [--head COMMIT | worktree] [--cases NAME ...] [--expect PATTERN=REASON ...]
                         [--work FOLDER] [--out FILE]

Compared are rollout files, metrics other than timings, exported weights, and the tensors of the newest checkpoint.
Runs that are complete under --work are not repeated: cases can be run in shards, and one command prints the table of
all. `git archive` unpacks a commit's files, and this interpreter imports them from there.

A difference whose `case/file:key` matches a PATTERN of --expect is counted and does not fail. Exit status: 0 without
any other difference, else 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from bench.same.cases import CASES, SMALL, Case
from bench.same.compare import Difference, compared, differences
from bench.same.runs import WORKTREE, RunError, ensure_run, tree_of, unpack
from capo_fast.markdown import markdown_table

HEAD = ["case", "arguments", "files", "result"]


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    revisions = {"base": options.base, "head": options.head}
    trees = {side: tree_of(revision) for side, revision in revisions.items()}
    results = [_result(name, trees, options.work.resolve(), dict(options.expect)) for name in options.cases]
    sides = [f"{revision} ({side}, tree {trees[side][:12]})" for side, revision in revisions.items()]
    table = markdown_table(HEAD, [row for row, _ in results])
    text = f"{' against '.join(sides)}, {_machine()}\n\n{table}"
    print(text, end="")
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0 if all(passed for _, passed in results) else 1


def compare_case(name: str, base: Path, head: Path, expect: Mapping[str, str]) -> tuple[list[str], bool]:
    """The row of the table, and True if there are only expected differences."""
    found = list(differences(base, head, CASES[name].timed))
    reasons = [_reason(name, difference, expect) for difference in found]
    unexpected = [difference for difference, reason in zip(found, reasons, strict=True) if reason is None]
    result = [f"{_differing(count)} as expected: {reason}" for reason, count in Counter(filter(None, reasons)).items()]
    if unexpected:
        result.insert(0, f"**{_differing(len(unexpected))}**, the first: {_shown(unexpected[0])}")
    files = len({**compared(base), **compared(head)})
    return [name, _settings(CASES[name]), str(files), "; ".join(result) or "equal"], not unexpected


def _result(name: str, trees: Mapping[str, str], work: Path, expect: Mapping[str, str]) -> tuple[list[str], bool]:
    try:
        runs = {side: _run(name, side, tree, work) for side, tree in trees.items()}
    except RunError as error:
        return [name, _settings(CASES[name]), "", f"**failed**: {error}"], False
    return compare_case(name, runs["base"], runs["head"], expect)


def _settings(case: Case) -> str:
    ranks, killed = f"{case.ranks} ranks" if case.ranks > 1 else "", "killed and resumed" if case.killed else ""
    return ", ".join(filter(None, [" ".join(case.arguments), ranks, killed])) or "default"


def _run(name: str, side: str, tree: str, work: Path) -> Path:
    print(f"{name}: {side}", file=sys.stderr, flush=True)
    try:
        return ensure_run(CASES[name], unpack(tree, work), work / side / tree[:12] / name)
    except RunError as error:
        raise RunError(f"{side}: {error}") from error


def _reason(name: str, found: Difference, expect: Mapping[str, str]) -> str | None:
    place = f"{name}/{found.file}:{found.key}"
    return next((reason for pattern, reason in expect.items() if fnmatchcase(place, pattern)), None)


def _differing(count: int) -> str:
    return f"{count} value{'s' * (count > 1)} differ{'s' * (count == 1)}"


def _shown(found: Difference) -> str:
    values = " against ".join(f"`{value}`" for value in (found.base, found.head))
    return f"{found.file}, line {found.line}, `{found.key}`: {values}"


def _machine() -> str:
    return f"{os.cpu_count()} cores of {platform.machine()}, torch {torch.__version__}; every run: `{' '.join(SMALL)}`."


def _pattern_and_reason(text: str) -> tuple[str, str]:
    pattern, _, reason = text.partition("=")
    if not pattern or not reason:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted PATTERN=REASON")
    return pattern, reason


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.same", description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="reference commit")
    parser.add_argument("--head", default=WORKTREE, help="commit, or this checkout (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    expect = parser.add_argument("--expect", nargs="+", default=[], type=_pattern_and_reason, metavar="PATTERN=REASON")
    expect.help = "allowed differences by `case/file:key`, for example 'dapo/metrics.jsonl:loss/*=credit in float64'"
    parser.add_argument(
        "--work", type=Path, default=Path("runs/same"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="file for the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
