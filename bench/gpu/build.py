"""Provides libcapo_cuda and csrc/selftest in one folder: working files are kept, the others are built.

    python -m bench.gpu.build FOLDER

`NVCC` names the compiler (default: nvcc from PATH, else from CUDA's usual folder).
"""

from __future__ import annotations

import ctypes
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from capo_kernels.fused.structs import ABI

ROOT = Path(__file__).parents[2]
libraries = SimpleNamespace(**runpy.run_path(str(ROOT / "csrc/libraries.py")))
USUAL = "/usr/local/cuda/bin/nvcc"


def loads(library: Path) -> bool:
    """True if the library loads here and has the interface of these sources."""
    try:
        return ctypes.CDLL(str(library)).capo_cuda_abi() == ABI
    except OSError as error:
        print(f"{library.name}: {error}")
        return False


def runs(program: Path) -> bool:
    """True if the program runs here: without an argument its exit status is 2."""
    try:
        return subprocess.run([program], stderr=subprocess.DEVNULL).returncode == 2
    except OSError as error:
        print(f"{program.name}: {error}")
        return False


def compile_selftest(program: Path) -> None:
    flags = ["-O2", "-std=c++17", "-cudart=static", f"-I{ROOT / 'csrc'}", "-ldl"]
    libraries.run([*libraries.compiler("NVCC", "nvcc"), *flags, str(ROOT / "csrc/selftest.cu"), "-o", str(program)])


def main() -> int:
    folder = Path(sys.argv[1])
    if "NVCC" not in os.environ and shutil.which("nvcc") is None:
        os.environ["NVCC"] = shlex.quote(USUAL)
    library, program = folder / "libcapo_cuda.so", folder / "selftest"
    if not loads(library) and (reason := libraries.build(library)):
        print(f"{library.name}: {reason}", file=sys.stderr)
        return 1
    if not runs(program):
        compile_selftest(program)
    print(f"{library}, {program}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
