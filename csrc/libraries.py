"""Builds libcapo_cpu, libcapo_cuda and libcapo_sums: `python csrc/libraries.py FOLDER`.

`pip install .` calls it. Plain C libraries, built without torch and without setuptools. The compilers are `CXX` (c++)
and `NVCC` (nvcc); `CXXFLAGS` are appended to the flags here. A library that can't be compiled is left out, and a file
beside the others has the reason; `capo_kernels.status()` shows it for the kernels.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

ISAS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS |= {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]}

CXX = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-Wall"]
NVCC = ["-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "--shared", "-Xcompiler=-fPIC", "-cudart=static"]


def build(library: Path) -> str | None:
    """Compiles one of LIBRARIES to `library`, whose stem names it. Returns why it was left out, or None."""
    library.parent.mkdir(parents=True, exist_ok=True)
    missing = library.with_suffix(".missing")
    try:
        with tempfile.TemporaryDirectory() as folder:
            LIBRARIES[library.stem](library, Path(folder))
    except OSError as error:
        library.unlink(missing_ok=True)
        missing.write_text(f"not built at the installation: {error}\n", encoding="utf-8")
        return str(error)
    missing.unlink(missing_ok=True)
    return None


def cpu(library: Path, temp: Path) -> None:
    """Compiles the SIMD source once per instruction set, and the entry points that choose among them."""
    cxx, own = compiler("CXX", "c++"), [*CXX, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    objects = []
    for isa, flags in ISAS.items():
        objects.append(str(temp / f"cpu_{isa}.o"))
        run([*cxx, *own, *flags, f"-DCAPO_ISA={isa}", "-c", str(HERE / "cpu_rows.cpp"), "-o", objects[-1]])
    run([*cxx, *own, "-shared", str(HERE / "cpu.cpp"), str(HERE / "cpu_tokens.cpp"), *objects, "-o", str(library)])


def cuda(library: Path, temp: Path) -> None:
    run([*compiler("NVCC", "nvcc"), *NVCC, str(HERE / "cuda.cu"), "-o", str(library)])


def sums(library: Path, temp: Path) -> None:
    """The trainer's library: checksums of weights."""
    own = [*CXX, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    run([*compiler("CXX", "c++"), *own, "-shared", str(HERE / "sums.cpp"), "-o", str(library)])


LIBRARIES = {"libcapo_cpu": cpu, "libcapo_cuda": cuda, "libcapo_sums": sums}


def compiler(variable: str, default: str) -> list[str]:
    command = shlex.split(os.environ.get(variable, default))
    if not command or shutil.which(command[0]) is None:
        raise OSError(f"no compiler {' '.join(command)!r} (set {variable} to name another)")
    return command


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    if code := subprocess.run(command).returncode:
        raise OSError(f"{command[0]} failed with exit status {code}")


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} FOLDER", file=sys.stderr)
        return 2
    reasons = {name: build(Path(sys.argv[1], f"{name}.so")) for name in LIBRARIES}
    for name, reason in reasons.items():
        print(f"{name}: {reason or 'built'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
