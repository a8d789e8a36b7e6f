"""Packages of bench/gpu.sh and bench/gpu_more.sh: those installed on the machine, and wheels that are copied to it.

    python -m bench.gpu.packages fetch [FOLDER]    # downloads the wheels of wheels.txt (default: bench/peers)
    python -m bench.gpu.packages link FOLDER       # links this environment's packages of both lists, and no others

A dry run can import only what `link` made, so that an import of any other package fails here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HERE = Path(__file__).parent
MACHINE, WHEELS = HERE / "machine.txt", HERE / "wheels.txt"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PYTHON = "3.12"


def listed(file: Path) -> list[str]:
    """Requirements, one per line; comments are left out."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def name_of(requirement: str) -> str:
    return requirement.partition("==")[0].lower().replace("_", "-")


def names() -> set[str]:
    """Normalised package names of both lists."""
    return {name_of(line) for file in (MACHINE, WHEELS) for line in listed(file)}


def fetch(folder: Path) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    arguments = ["--python-version", PYTHON, *platforms, "--dest", str(folder), "--requirement", str(WHEELS)]
    subprocess.run([*command, *arguments], check=True)


def link(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(names()):
        for path in _installed(name):
            place = folder / path.name
            if not place.is_symlink():
                place.symlink_to(path)


def _installed(name: str) -> Iterator[Path]:
    """Files and folders of a package in site-packages; none where it is not installed."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        print(f"not installed here: {name}")
        return
    tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
    yield from (Path(str(package.locate_file(top))) for top in sorted(tops))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("fetch", "link"))
    parser.add_argument("folder", type=Path, nargs="?", default=HERE.parent / "peers")
    arguments = parser.parse_args()
    {"fetch": fetch, "link": link}[arguments.action](arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
