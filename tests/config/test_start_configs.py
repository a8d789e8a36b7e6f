"""The start configurations fit in the memory that they name, and contain their plan's last line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from capo_fast.config import load_config
from capo_fast.plan.__main__ import arguments, job_of, main
from capo_fast.plan.hardware import GIB
from capo_fast.plan.memory import room

CONFIGS = Path(__file__).parents[2] / "configs"
OF_GPUS = sorted(path for path in CONFIGS.glob("*.yaml") if "capo plan --config" in path.read_text())


def test_each_kind_of_machine_has_a_configuration():
    assert {re.search(r"-(\d+x\w+)$", path.stem)[1] for path in OF_GPUS} >= {"1x24gb", "1x80gb", "8x80gb"}
    table = (CONFIGS / "README.md").read_text()
    assert [path.name for path in CONFIGS.glob("*.yaml") if f"| `{path.name}` |" not in table] == []


@pytest.mark.parametrize("path", OF_GPUS, ids=lambda path: path.stem)
def test_a_configuration_fits_as_its_header_states(path, capsys, monkeypatch):
    text = path.read_text()
    assert "Never run on a GPU" in text
    command = re.search(r"^# capo plan (--config .*):$", text, re.MULTILINE)[1]
    monkeypatch.chdir(CONFIGS.parent)
    assert main(command.split()) == 0
    fits = capsys.readouterr().out.splitlines()[-1]
    assert f"#   {fits}" in text.splitlines()


def test_the_cpu_configuration_fits_in_the_memory_that_it_names():
    path = str(CONFIGS / "smollm2-cpu.yaml")
    options, rest = arguments(["--config", path, "--device", "cpu"])
    job = job_of(options, rest, hosts=1)
    small = replace(job, hardware=replace(job.hardware, memory=8 * GIB))
    assert room(small) > 0
    assert load_config(["--config", path, "--algorithm", "capo"]).has_critic, "it allows algorithms with a critic"
