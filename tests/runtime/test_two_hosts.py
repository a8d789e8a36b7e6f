"""torchrun on two hosts, each a network namespace: one is lost during a step; the run continues on the other."""

from __future__ import annotations

import gzip
import json
import time

import hosts_run
import pytest
import scripted_run
from forked import run_ranks
from safetensors.torch import load_file
from two_hosts import two_forked_hosts

from bench.chaos.hosts import HostError

SETTINGS = {
    "--train.steps": "2",
    "--checkpoint.every": "1",
    "--rollout.prompts": "2",
    "--eval.path": "none",
}
pytestmark = pytest.mark.usefixtures("fork_server")


def arguments(folder):
    return ["--run.dir", str(folder), *(word for pair in SETTINGS.items() for word in pair)]


def rollouts_of(folder):
    """The contents of each step's rollout file."""
    return [gzip.decompress(path.read_bytes()) for path in sorted((folder / "rollouts").iterdir())]


@pytest.fixture
def hosts(tmp_path):
    try:
        with two_forked_hosts(tmp_path) as found:
            yield found
    except HostError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_a_lost_host_ends_the_job_and_the_run_continues_on_the_other(hosts, tmp_path):
    left, right = hosts
    mark, folder = tmp_path / "mark", tmp_path / "run"
    for host in hosts:
        host.torchrun(hosts_run.main, str(mark), "right", "2", *arguments(folder))
    while not mark.exists():
        assert left.is_running() and right.is_running(), left.log.read_text() + right.log.read_text()
        time.sleep(0.02)
    right.kill()
    assert left.join(60) == 1
    errors = [line for line in left.log.read_text().splitlines() if line.startswith("capo_fast")]
    assert errors == ["capo_fast: error: rank 1 on right died without an error message, as if killed"]

    one_host = tmp_path / "one_host"
    for log, world, target in (("resumed", 1, folder), ("reference", 2, one_host)):
        statuses, output = run_ranks(scripted_run.main, tmp_path / log, arguments(target), world=world)
        assert set(statuses) == {0}, output
    assert "ranks: 1, was 2" in (tmp_path / "resumed").read_text()
    assert [len(rows.splitlines()) for rows in rollouts_of(folder)] == [8, 8]
    # Text and log-probs of the scripted engine depend only on a request's prompt and seed.
    assert rollouts_of(folder) == rollouts_of(one_host)
    found, expected = (load_file(path / "model" / "model.safetensors") for path in (folder, one_host))
    assert max((found[name] - expected[name]).abs().max().item() for name in found) < 2e-6
    norms = [[json.loads(line)["grad_norm"] for line in (path / "metrics.jsonl").open()] for path in (folder, one_host)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
