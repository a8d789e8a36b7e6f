"""Package folders, and the build of capo_kernels' libraries by csrc/libraries.py."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "csrc"))  # a build may run without this folder on sys.path
from libraries import build

TRAINER = find_packages(include=["capo_fast", "capo_fast.*"])
KERNELS = find_packages("kernels", include=["capo_kernels", "capo_kernels.*"])
DATA = [
    "capo_fast.credit.prompts",
    "capo_fast.report.assets",
    "capo_fast.tiny.critic",
    "capo_fast.tiny.model",
]  # folders without Python files
CSRC = sorted(str(path) for path in Path("csrc").iterdir() if path.is_file())


class BuildLibraries(build_ext):
    """Each extension is a library loaded by ctypes: no Python.h, no ABI suffix."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        if reason := build(library):
            self.warn(f"{library.stem} is left out: {reason}")

    def copy_extensions_to_source(self) -> None:
        """Copies the libraries, or the reasons why they are missing, to the sources of an editable install."""
        folder = Path(self.get_finalized_command("build_py").get_package_dir("capo_kernels.lib"))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(self.build_lib, "capo_kernels", "lib"), folder)


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries depend only on the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*TRAINER, *KERNELS, "capo_fast.configs", *DATA],
    package_dir={
        "capo_fast": "capo_fast",
        "capo_fast.configs": "configs",  # read with importlib.resources.files("capo_fast.configs")
        "capo_kernels": "kernels/capo_kernels",
    },
    package_data={
        "capo_fast": ["py.typed"],
        "capo_fast.configs": ["**/*.yaml"],
        "capo_fast.runlog": ["card.md"],
        "capo_fast.tiny": ["*.jsonl*"],
        "capo_kernels": ["py.typed"],
        **{folder: ["*"] for folder in DATA},
    },
    ext_modules=[
        Extension("capo_kernels.lib.libcapo_cpu", ["csrc/cpu.cpp"], depends=CSRC),
        Extension("capo_kernels.lib.libcapo_cuda", ["csrc/cuda.cu"], depends=CSRC),
        Extension("capo_kernels.lib.libcapo_sums", ["csrc/sums.cpp"], depends=CSRC),
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
