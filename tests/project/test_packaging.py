"""The installation: a complete wheel, a kernel library that needs only torch, imports without side effects."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ["accelerate", "bokeh", "datasets", "math_verify", "numpy", "peft", "pyarrow", "pydantic", "rich"]
EXTRAS += ["tensorboard", "transformers", "triton", "vllm", "yaml"]


def python(code: str, cwd: Path) -> str:
    """Runs code in a new interpreter outside the checkout, without the environment's PYTHONPATH."""
    done = subprocess.run([sys.executable, "-E", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of_the_sources(folder: Path) -> Path:
    """Copy the sources, so that the build neither uses nor changes the checkout's build folder."""
    for name in ("capo_fast", "configs", "csrc", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def unpack(wheel: Path, site: Path) -> Path:
    """Unpack the wheel as an installer does."""
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("build")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    environment = os.environ | {"NVCC": "no-nvcc", "CXXFLAGS": "-O0"}
    source = copy_of_the_sources(folder / "source")
    done = subprocess.run([*build, str(source)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    return unpack(wheel, tmp_path_factory.mktemp("site"))


def test_wheel_contains_every_file_of_the_packages(wheel):
    packages = {"capo_fast": ROOT / "capo_fast", "capo_kernels": ROOT / "kernels/capo_kernels"}
    wanted = {
        f"{name}/{path.relative_to(root).as_posix()}"
        for name, root in packages.items()
        for path in root.rglob("*")
        if path.is_file() and not {"__pycache__", "lib"} & set(path.parts)
    }
    configs = ROOT / "configs"
    wanted |= {f"capo_fast/configs/{path.relative_to(configs).as_posix()}" for path in configs.rglob("*.yaml")}
    missing = wanted - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, "add these to package_data in setup.py"
    assert {"capo_fast/tiny/model/model.safetensors", "capo_fast/configs/algorithms/grpo.yaml"} <= wanted
    assert {"capo_fast/py.typed", "capo_kernels/py.typed"} <= wanted


def test_an_index_would_accept_the_sdist_and_the_wheel(dist):
    files = [str(path) for path in dist.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert (len(files), done.returncode) == (2, 0), done.stdout + done.stderr


def test_wheel_contains_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"capo_fast", "capo_kernels"}


def test_torch_is_the_only_requirement(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    needs = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    assert [need for need in needs if "extra ==" not in need] == ["torch>=2.10"]


def test_kernels_work_from_the_wheel_with_only_torch(site, tmp_path):
    code = f"""
import sys
sys.modules |= dict.fromkeys({EXTRAS!r})  # as if not installed
sys.path.insert(0, {str(site)!r})
import torch, capo_kernels as ck
assert ck.__file__.startswith({str(site)!r}), ck.__file__
assert ck.status()["reference"] == ck.status()["cpu"] == "available", ck.status()
logits = torch.randn(4, 8, requires_grad=True)
weights = ck.token_weights(torch.tensor([0, 4], dtype=torch.int32), torch.ones(4, dtype=torch.bool), "token-mean")
loss = ck.policy_loss(logits, torch.arange(4), weights=weights, advantages=torch.ones(4)).loss
loss.backward()
assert logits.grad.abs().sum() > 0
"""
    python(code, tmp_path)


def test_one_wheel_serves_every_python_and_torch(wheel, site):
    """The libraries depend on neither Python nor torch, so the wheel's tag names only the platform."""
    assert "-py3-none-" in wheel.name
    libraries = sorted(path.name for path in (site / "capo_kernels/lib").iterdir())
    assert libraries == ["libcapo_cpu.so", "libcapo_cuda.missing", "libcapo_sums.so"]
    needed = subprocess.run(
        ["readelf", "-d", site / "capo_kernels/lib/libcapo_cpu.so"], capture_output=True, text=True, check=True
    ).stdout
    assert "libgomp" in needed
    assert not [word for word in ("python", "torch", "c10") if word in needed]


def test_without_compilers_the_rest_installs_and_status_gives_the_reason(dist, tmp_path):
    sdist = next(dist.glob("*.tar.gz"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"NVCC": "no-nvcc", "CXX": "no-cxx"}
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(sdist)], check=True, env=environment)
    site = unpack(next(tmp_path.glob("*.whl")), tmp_path / "site")
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import torch, capo_kernels as ck
print(ck.status()["cpu"])
print(ck.token_logprobs(torch.zeros(1, 2), torch.zeros(1).long()).tolist())
"""
    status, logprobs = python(code, tmp_path).splitlines()
    assert status == "not built at the installation: no compiler 'no-cxx' (set CXX to name another)"
    assert logprobs.startswith("[-0.693")


def test_every_library_is_built_whose_compiler_is_installed():
    library = ROOT / "kernels/capo_kernels/lib"
    for compiler, name in (("c++", "libcapo_cpu"), ("c++", "libcapo_sums"), ("nvcc", "libcapo_cuda")):
        if shutil.which(compiler):
            assert (library / f"{name}.so").exists(), (library / f"{name}.missing").read_text()


@pytest.mark.parametrize("installed", ["wheel", "this environment"])
def test_configs_are_found(installed, site, tmp_path):
    path = str(site) if installed == "wheel" else None
    code = f"""
import sys
sys.path[:0] = [{path!r}] * {path is not None}
from importlib import resources
print((resources.files("capo_fast.configs") / "tiny.yaml").read_text(encoding="utf-8"), end="")
"""
    assert python(code, tmp_path) == (ROOT / "configs/tiny.yaml").read_text(encoding="utf-8")


def test_importing_capo_fast_loads_nothing(tmp_path):
    code = """
import sys
before = set(sys.modules)
import capo_fast
print(*sorted(set(sys.modules) - before))
"""
    assert python(code, tmp_path).split() == ["capo_fast"]


def test_importing_the_trainer_has_no_side_effects(tmp_path):
    """Importing all modules loads no engine and changes no environment, torch setting, random state or thread."""
    code = """
import os, pkgutil, sys, threading
import torch, transformers
transformers.Qwen2ForCausalLM  # imported before: its own side effects do not count
import capo_fast

def state():
    return {
        "environ": dict(os.environ), "sys.path": list(sys.path), "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(),
        "random state": torch.get_rng_state().tolist(),
    }

before = state()
for module in pkgutil.walk_packages(capo_fast.__path__, "capo_fast."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
changed = [name for name, value in state().items() if value != before[name]]
assert not changed, changed
assert "vllm" not in sys.modules
"""
    python(code, tmp_path)


def test_importing_kernels_does_not_import_triton(tmp_path):
    code = """
import sys, torch
before = set(sys.modules)
import capo_kernels
print(*{name.split(".")[0] for name in set(sys.modules) - before} & {"triton", "transformers", "vllm", "capo_fast"})
"""
    assert python(code, tmp_path).split() == []
