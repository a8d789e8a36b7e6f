"""Ranks on several hosts: engines across hosts, nodes of unequal sizes, the network interface between hosts."""

from __future__ import annotations

import os
import re
from datetime import timedelta

import hosts_run
import pytest
import torch.distributed as dist
from forked import run_ranks

from capo_fast.errors import CapoError, ConfigError
from capo_fast.runtime import mesh
from capo_fast.runtime.hosts import GLOO, PLACE, Place, check_engines, choose_interface, find_places, own_address
from capo_fast.runtime.job import Job, enter_job, leave_job


def places(*nodes: int) -> tuple[Place, ...]:
    """Places of a job with these numbers of ranks per node."""
    firsts = [sum(nodes[:i]) for i in range(len(nodes))]
    return tuple(Place(f"host-{i}", first, "127.0.0.1") for i, first in enumerate(firsts) for _ in range(nodes[i]))


@pytest.mark.parametrize(("nodes", "first", "k"), [((4, 4), 0, 4), ((2, 6), 2, 3), ((3, 5), 4, 2), ((8,), 0, 8)])
def test_engines_inside_hosts(nodes, first, k):
    check_engines(places(*nodes), first, k)


@pytest.mark.parametrize(
    ("nodes", "first", "expected"),
    [((3, 3), 0, "ranks 2 to 3 are on host-0 and host-1"), ((3, 5), 2, "ranks 2 to 3 are on host-0 and host-1")],
)
def test_an_engine_that_crosses_hosts_is_refused(nodes, first, expected):
    with pytest.raises(ConfigError, match=rf"^engine\.tensor_parallel: found 2, wanted engines of .*: {expected}"):
        check_engines(places(*nodes), first, 2)


@pytest.fixture
def mesh_of(monkeypatch):
    """The mesh shape of a job with these numbers of ranks per node; the last `engines` ranks have engines."""
    monkeypatch.setattr(mesh, "init_device_mesh", lambda kind, shape, mesh_dim_names=None: shape)

    def shape(nodes, engines, shard):
        enter_job(Job(None, 0, sum(nodes), engines, timedelta(1), places(*nodes)))
        return mesh.policy_mesh("cpu", shard)

    yield shape
    leave_job()


@pytest.mark.parametrize(
    ("nodes", "engines", "shard", "shape"),
    [
        ((8,), 0, "node", (8,)),
        ((4, 4), 0, "node", (2, 4)),
        ((4, 4), 0, "all", (8,)),
        ((4, 4), 4, "node", (4,)),
        ((1, 1, 1), 0, "node", (3, 1)),
    ],
)
def test_the_mesh_of_a_sharded_policy(nodes, engines, shard, shape, mesh_of):
    assert mesh_of(nodes, engines, shard) == shape


def test_nodes_of_unequal_sizes_can_not_hold_copies(mesh_of):
    with pytest.raises(ConfigError, match=r"^policy\.shard: found node with 4 on host-0, 3 on host-1, wanted equally"):
        mesh_of((4, 4), 1, "node")
    assert mesh_of((4, 4), 1, "all") == (7,)


def test_the_ranks_of_a_role_on_a_node():
    mates = [Job(None, rank, 8, 5, timedelta(1), places(4, 4)).mates for rank in (0, 3, 7)]
    assert mates == [[0, 1, 2], [3], [4, 5, 6, 7]]


def test_without_an_interface_gloo_keeps_its_default_with_a_warning(monkeypatch, capsys):
    monkeypatch.delenv(GLOO, raising=False)
    pods = (Place("host-0", 0, "203.0.113.1"), Place("host-1", 1, "203.0.113.2"))
    choose_interface(pods, 1)
    assert GLOO not in os.environ
    assert "no interface of host-1 has its address 203.0.113.2" in capsys.readouterr().err


@pytest.fixture
def find_places_soon(monkeypatch):
    """`find_places` with a short wait."""
    monkeypatch.setattr("capo_fast.runtime.hosts.MEET_S", 0.05)
    for name, value in {"LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    return find_places


def test_ranks_that_start_late_are_named_and_fail_once_they_start(find_places_soon):
    store = dist.HashStore()
    store.set(f"{PLACE}/0", "[]")
    with pytest.raises(CapoError, match=r"^ranks 2, 3 have not started 0\.05 s after this one") as late:
        find_places_soon(store, 1, 4)
    assert late.value.quiet, "rank 0 of this host prints the line"
    store.set(f"{PLACE}/2", "[]")
    with pytest.raises(CapoError, match=r"^ranks 2, 3 have not started 0\.05 s after others: they have exited"):
        find_places_soon(store, 3, 4)


def test_a_rank_that_starts_at_the_end_of_the_wait_is_not_late(find_places_soon):
    class Slow(dist.HashStore):
        def wait(self, names, timeout):
            super().set(f"{PLACE}/0", '["host-0", 0, "127.0.0.1"]')
            raise dist.DistStoreError("time-out")

    assert find_places_soon(Slow(), 1, 2)[0].host == "host-0"


@pytest.mark.parametrize(
    ("nodes", "before", "after"), [((1, 1), None, "lo"), ((1, 1), "eth7", "eth7"), ((2,), None, None)]
)
def test_gloo_uses_the_interface_between_hosts(nodes, before, after, monkeypatch):
    monkeypatch.setenv(GLOO, before or "")
    if before is None:
        monkeypatch.delenv(GLOO)
    for rank in range(2):
        choose_interface(places(*nodes), rank)
    assert os.environ.get(GLOO) == after


def write_other_data(folder):
    """Write different data under the same name on two hosts."""
    for rank in range(2):
        (folder / f"host-{rank}").mkdir()
        (folder / f"host-{rank}/data.jsonl").write_text(f'{{"problem": "1+1", "answer": "{rank}"}}\n')


@pytest.mark.usefixtures("fork_server")
def test_hosts_that_share_no_folder_or_read_other_data_are_refused(tmp_path):
    write_other_data(tmp_path)
    statuses, output = run_ranks(hosts_run.start_run_per_host, tmp_path / "log", tmp_path, per_node=1)
    assert statuses == [0, 0], output
    data, folder = sorted(set(output.splitlines()))
    assert re.fullmatch(r"run\.dir: run of rank 0 on \S+ is missing for rank 1 on \S+, wanted a folder on .*", folder)
    assert re.fullmatch(r"data\.path: data\.jsonl differs between \S+ and \S+, wanted the same file on .*", data)


@pytest.mark.usefixtures("fork_server")
def test_a_host_that_only_holds_engines_must_read_the_same_data(tmp_path):
    """It reads prompts and reference answers from its own files."""
    write_other_data(tmp_path)
    _, output = run_ranks(hosts_run.read_inputs_per_host, tmp_path / "log", tmp_path, per_node=1)
    assert re.search(r"^data\.path: data\.jsonl differs between \S+ and \S+, wanted the same file on ", output, re.M)
    assert "its error is the one to read" in output, "the learner stops too"


def test_own_address_is_the_one_that_reaches_the_master():
    assert own_address("127.0.0.1") == "127.0.0.1"
