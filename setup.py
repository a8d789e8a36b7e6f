"""Where the packages lie, and how csrc/ becomes libcapo_cpu and libcapo_cuda: plain C libraries, built without torch.

What can't be compiled is left out, and a file beside the libraries says why; `capo_kernels.status()` shows it. The
compilers are `CXX` (c++) and `NVCC` (nvcc).
"""

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

TRAINER = find_packages(include=["capo_fast", "capo_fast.*"])
KERNELS = find_packages("kernels", include=["capo_kernels", "capo_kernels.*"])
DATA = ["capo_fast.configs", "capo_fast.credit.prompts", "capo_fast.page.assets", "capo_fast.tiny.model"]

CSRC = sorted(str(path) for path in Path("csrc").iterdir())
ISAS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS |= {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]}

CXX = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-Wall"]
NVCC = ["-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "--shared", "-Xcompiler=-fPIC", "-cudart=static"]


class BuildLibraries(build_ext):
    """Each extension is a library that ctypes loads: no Python.h, no suffix of an interpreter's ABI."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            COMPILERS[library.stem](ext.sources[0], library, Path(self.build_temp))
        except OSError as error:
            self.warn(f"{library.stem} is left out: {error}")
            library.unlink(missing_ok=True)
            library.with_suffix(".missing").write_text(f"not built at the installation: {error}\n", encoding="utf-8")
        else:
            library.with_suffix(".missing").unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        """An editable install has its libraries, or the reasons why not, beside the sources."""
        folder = Path(self.get_finalized_command("build_py").get_package_dir("capo_kernels.lib"))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(self.build_lib, "capo_kernels", "lib"), folder)


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries depend on the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def cpu(source: str, library: Path, temp: Path) -> None:
    """The SIMD source once for each instruction set, and the entry points that choose among them."""
    cxx = compiler("CXX", "c++")
    temp.mkdir(parents=True, exist_ok=True)
    objects = []
    for isa, flags in ISAS.items():
        objects.append(str(temp / f"cpu_{isa}.o"))
        run([*cxx, *CXX, *flags, f"-DCAPO_ISA={isa}", "-c", "csrc/cpu_rows.cpp", "-o", objects[-1]])
    run([*cxx, *CXX, "-shared", source, *objects, "-o", str(library)])


def cuda(source: str, library: Path, temp: Path) -> None:
    run([*compiler("NVCC", "nvcc"), *NVCC, source, "-o", str(library)])


COMPILERS = {"libcapo_cpu": cpu, "libcapo_cuda": cuda}


def compiler(variable: str, default: str) -> list[str]:
    command = shlex.split(os.environ.get(variable, default))
    if not command or shutil.which(command[0]) is None:
        raise OSError(f"no compiler {' '.join(command)!r} (set {variable} to name another)")
    return command


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    if code := subprocess.run(command).returncode:
        raise OSError(f"{command[0]} failed with exit status {code}")


setup(
    packages=[*TRAINER, *KERNELS, *DATA],
    package_dir={
        "capo_fast": "capo_fast",
        "capo_fast.configs": "configs",  # read with importlib.resources.files("capo_fast.configs")
        "capo_kernels": "kernels/capo_kernels",
    },
    package_data={"capo_fast.tiny": ["*.jsonl*"], **{folder: ["*"] for folder in DATA}},
    ext_modules=[
        Extension("capo_kernels.lib.libcapo_cpu", ["csrc/cpu.cpp"], depends=CSRC),
        Extension("capo_kernels.lib.libcapo_cuda", ["csrc/cuda.cu"], depends=CSRC),
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
