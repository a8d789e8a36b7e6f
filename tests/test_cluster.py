"""The recipes of configs/cluster, run with stubs in place of all commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from capo_fast.cli import split_ranks
from capo_fast.config import load_config
from capo_fast.runtime.ranks import check_roles

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "configs/cluster"
NOTE = """{ printf '%s\\t' "${0##*/}" "$@"; echo; } >> "$NOTES"\n"""
STUBS = {
    "capo": NOTE + 'exit "${CHECK:-0}"\n',
    "torchrun": NOTE + 'exit "${STATUS:-0}"\n',
    "scontrol": NOTE + "printf 'node-a\\nnode-b\\n'\n",
    "srun": 'while [[ "$1" == --* ]]; do shift; done\n"$@"\n',
}
TIME_LIMIT = r"""
save() {
    kill $!
    printf 'saved\t\n' >> "$NOTES"
    exit 1
}
trap save TERM
kill -USR1 $$
sleep 0.3 # its parent has set its trap by then
kill -USR1 $PPID
sleep 30 & wait
"""
"""torchrun near the time limit: SLURM signals every process of a step, so torchrun and its parent."""
PLACES = {
    "slurm.sbatch": {
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        "RUN_DIR": "runs/x",
        "SLURM_CPUS_PER_TASK": "64",
    },
    "jobset.yaml": {},
    "skypilot.yaml": {
        **{"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_TASK_ID": "task"},
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    },
}


def script_of(name: str) -> tuple[list[str], dict[str, str]]:
    """The command of a recipe's script, and the environment that the recipe sets."""
    if name.endswith(".sbatch"):
        return [str(CLUSTER / name), "--data.path", "math_train.jsonl"], {}
    recipe = yaml.safe_load((CLUSTER / name).read_text())
    if recipe.get("kind") != "JobSet":
        return ["-c", recipe["run"]], recipe["envs"]
    [job] = recipe["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    return [container["command"][1], *container["args"]], {each["name"]: each["value"] for each in container["env"]}


def run_recipe(
    name: str, folder: Path, stubs: dict[str, str] = STUBS, **environment: str
) -> tuple[int, list[list[str]]]:
    """The recipe's exit status and the commands that it ran."""
    for command, text in stubs.items():
        (folder / command).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / command).chmod(0o755)
    words, own = script_of(name)
    notes = folder / "notes"
    path = f"{folder}:{os.environ['PATH']}"
    place = {**os.environ, **own, **PLACES[name], "PATH": path, "NOTES": str(notes), **environment}
    done = subprocess.run(["bash", *words], cwd=folder, env=place)
    return done.returncode, [line.split("\t")[:-1] for line in notes.read_text().splitlines()]


@pytest.mark.parametrize("name", PLACES)
def test_the_commands_of_a_recipe(name, tmp_path, monkeypatch):
    status, commands = run_recipe(name, tmp_path)
    assert status == 0
    [check], [torchrun] = ([rest for first, *rest in commands if first == which] for which in ("capo", "torchrun"))
    launch = get_args_parser().parse_args(torchrun)
    assert launch.module and launch.training_script == "capo_fast.train"
    count, settings = split_ranks(check[1:])
    assert settings == launch.training_script_args
    assert count == int(launch.nnodes) * int(launch.nproc_per_node) == 16
    assert launch.rdzv_endpoint in ("node-a:29500", "capo-node-0-0.capo:29500", "10.0.0.1:29500")
    monkeypatch.chdir(ROOT)
    config = load_config(settings)
    check_roles(count, config.engine)
    assert config.run.dir and config.data.path and config.rollout.prompts == 24


@pytest.mark.parametrize(("restarts", "status", "expected"), [("0", 0, [["requeue", "7"]]), ("5", 1, [])])
def test_a_failed_job_is_requeued_a_limited_number_of_times(restarts, status, expected, tmp_path):
    found, commands = run_recipe("slurm.sbatch", tmp_path, STATUS="1", SLURM_RESTART_COUNT=restarts)
    assert found == status
    assert [rest for first, *rest in commands if first == "scontrol" and rest[0] == "requeue"] == expected


@pytest.mark.parametrize("name", PLACES)
def test_a_failed_check_starts_nothing(name, tmp_path):
    status, commands = run_recipe(name, tmp_path, CHECK="1")
    assert status == (2 if name == "jobset.yaml" else 1)
    assert {first for first, *_ in commands} <= {"scontrol", "capo"}


def test_a_step_near_its_time_limit_signals_torchrun_once(tmp_path):
    status, commands = run_recipe("slurm.sbatch", tmp_path, {**STUBS, "torchrun": NOTE + TIME_LIMIT})
    assert status == 0
    assert commands[-2:] == [["saved"], ["scontrol", "requeue", "7"]]


def test_the_options_of_sbatch_have_its_syntax():
    lines = (CLUSTER / "slurm.sbatch").read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert len(options) > 5 and all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in options)
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(i for i, line in enumerate(lines) if line in options) < commands[0], "sbatch stops at the first command"
