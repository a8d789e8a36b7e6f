"""Plants the faults of faults.toml in copies of the tree, one per copy, and expects the tests named there to fail.

    python -m tests.planted [--only NAME ...] [--jobs 2]

Each copy has the files of the git checkout and the built library; a fault in csrc builds its own library. Exit status 1
if a fault survives its tests, if its old text is no longer in its file, or if its tests do not run. The tests must pass
without faults: run `make test` first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.planted.faults import ROOT, Fault, read_faults

LIBRARY = Path("kernels/capo_kernels/lib")
RED, GREEN = 1, 0
"""pytest's exit statuses for failed tests and for passed tests. With any other status the tests did not run."""
LONGEST_S = 900


def outcome(fault: Fault) -> str:
    """`red` if the tests detect the fault, else a description of the problem."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = Path(folder)
        try:
            text = fault.spoil((ROOT / fault.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"not planted: {error}"
        copy_tree(tree)
        (tree / fault.file).write_text(text, encoding="utf-8")
        add_library(tree, build=fault.file.startswith("csrc/"))
        return run_tests(tree, fault.tests)


def copy_tree(tree: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)


def add_library(tree: Path, build: bool) -> None:
    """Copy the checkout's libraries, or build the CPU library from the copy's sources."""
    if not build:
        shutil.copytree(ROOT / LIBRARY, tree / LIBRARY)
        return
    command = [sys.executable, "csrc/libraries.py", str(LIBRARY)]
    environment = os.environ | {"NVCC": "no-nvcc"}
    subprocess.run(command, cwd=tree, check=True, env=environment, stdout=subprocess.DEVNULL)
    if not (tree / LIBRARY / "libcapo_cpu.so").exists():
        raise SystemExit((tree / LIBRARY / "libcapo_cpu.missing").read_text(encoding="utf-8"))


def run_tests(tree: Path, tests: Sequence[str]) -> str:
    path = os.pathsep.join([str(tree), str(tree / "kernels")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        return f"timed out after {LONGEST_S} s"
    if ended.returncode == RED:
        return "red"
    end = (ended.stdout + ended.stderr).strip().splitlines()[-1:]
    return "survived" if ended.returncode == GREEN else f"tests did not run: {' '.join(end)}"


def chosen(names: Iterable[str], faults: Sequence[Fault]) -> list[Fault]:
    known = {fault.name: fault for fault in faults}
    if unknown := set(names) - known.keys():
        raise SystemExit(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [known[name] for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description="Planted faults: do the tests fail?")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these faults")
    parser.add_argument("--jobs", type=int, default=2, help="faults at once (%(default)s)")
    options = parser.parse_args()
    faults = read_faults() if options.only is None else chosen(options.only, read_faults())
    bad = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, found in zip(faults, pool.map(outcome, faults), strict=True):
            bad += found != "red"
            print(f"{fault.name}: {found}" + ("" if found == "red" else f" ({fault.why})"), flush=True)
    print(f"{len(faults) - bad} of {len(faults)} faults detected")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
