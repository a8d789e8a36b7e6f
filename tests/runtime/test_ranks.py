"""The processes of a run: a group of one and its cleanup, signals, gather."""

from __future__ import annotations

import os
import pickle
import random
import signal
from contextlib import nullcontext, suppress
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from capo_fast.command import asked_to_stop, interruptible
from capo_fast.config.schema import EngineConfig
from capo_fast.errors import CapoError, ConfigError, Interrupted, portable
from capo_fast.runtime.failures import FIRST
from capo_fast.runtime.job import Job
from capo_fast.runtime.ranks import (
    EngineGroup,
    StopSignal,
    _meet,
    check_devices,
    check_roles,
    engine_group,
    gather,
    on_every_rank,
    on_first_rank,
    once_a_node,
    ranks,
    seed_everything,
)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def handlers():
    """Installs handlers, so that StopSignal restores them and not the defaults; resets the real ones at the end."""

    def mine(number, frame):
        raise AssertionError("the signal reached the previous handler")

    before = {number: signal.signal(number, mine) for number in SIGNALS}
    yield mine
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stop(one_rank, handlers):
    stop = StopSignal()
    yield stop
    stop.close()


def test_a_group_of_one_leaves_nothing_behind(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    for _ in range(2):
        with ranks() as device:
            assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
            assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
            assert os.environ["RANK"] == "0"
        assert not dist.is_initialized()
        assert dict(os.environ) == before


def test_an_error_leaves_nothing_behind_either(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), ranks():
        _ = 1 / 0
    assert not dist.is_initialized()
    assert dict(os.environ) == before


def test_a_group_that_the_engine_destroyed_is_accepted(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    with ranks():
        dist.destroy_process_group()
    assert dict(os.environ) == before


def test_torchruns_environment_is_kept(monkeypatch):
    with ranks():
        port = os.environ["MASTER_PORT"]
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with ranks():
        assert dist.get_world_size() == 1
    assert {name: os.environ.get(name) for name in torchrun} == torchrun


def test_a_rank_without_the_rest_of_torchruns_environment_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match=r"^RANK: found without LOCAL_RANK, MASTER_ADDR, MASTER_PORT, wanted"),
        ranks(),
    ):
        pass


def test_nothing_is_raised_before_a_signal(stop):
    stop.check()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_at_the_next_check(number, stop):
    signal.raise_signal(number)
    for _ in range(2):  # the request is not cleared
        with pytest.raises(Interrupted):
            stop.check()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_has_the_default_handler(number, stop):
    signal.raise_signal(number)
    assert signal.getsignal(number) == signal.SIG_DFL
    others = [other for other in SIGNALS if other != number]
    assert all(signal.getsignal(other) != signal.SIG_DFL for other in others)


def test_close_restores_the_signal_handlers(handlers):
    stop = StopSignal()
    assert all(signal.getsignal(number) is not handlers for number in SIGNALS)
    signal.raise_signal(signal.SIGTERM)
    stop.close()
    assert all(signal.getsignal(number) is handlers for number in SIGNALS)


def test_a_signal_whose_exception_a_library_caught_stops_the_run_at_the_first_check(one_rank):
    with interruptible():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        stop = StopSignal()
        with pytest.raises(Interrupted):
            stop.check()
        stop.close()
    StopSignal().close()
    assert not asked_to_stop.is_set()


def test_a_rank_that_fails_before_all_have_connected_ends_the_others_at_once():
    """The others are on other hosts, whose launchers keep running."""
    store = dist.HashStore()
    store.set(FIRST, "rank 1 on host-b failed")
    with pytest.raises(CapoError, match="another rank exited before all ranks had passed their checks"):
        _meet(Job(store, 0, 2, 0, timedelta(minutes=1)))
    _meet(Job(store, 1, 2, 0, timedelta(minutes=1)))


def test_gather_keeps_the_order_of_a_rank_s_items(one_rank):
    items = [(2, None), (0, 0.5), (1, True)]
    assert gather(items) == items
    assert gather([]) == []


def test_gather_concatenates_the_lists_of_all_ranks(monkeypatch):
    def all_gather_object(lists, items, group):
        lists[:] = [items, [], [7, 8]]

    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    assert gather([5, 6]) == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("rank", "k", "group"),
    [(0, 1, (0, 8, True)), (7, 1, (7, 8, True)), (5, 2, (2, 4, False)), (6, 2, (3, 4, True)), (5, 8, (0, 1, False))],
)
def test_neighbours_share_an_engine(rank, k, group, monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    assert engine_group(k) == EngineGroup(*group)


def test_ranks_that_no_engines_can_share_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(
        ConfigError, match=r"^engine\.tensor_parallel: found 2, wanted a divisor of the number of ranks, 3$"
    ):
        engine_group(2)


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (
            1,
            {"ranks": 1},
            "engine.ranks: found 1, wanted 0 with one rank: on one device generation and learning have nothing to "
            "overlap",
        ),
        (4, {"ranks": 4}, "engine.ranks: found 4, wanted at most 3 of 4 ranks: the others learn"),
        (4, {"ranks": 3, "tensor_parallel": 2}, "engine.tensor_parallel: found 2, wanted a divisor of engine.ranks, 3"),
        (3, {"tensor_parallel": 2}, "engine.tensor_parallel: found 2, wanted a divisor of the number of ranks, 3"),
        (3, {"ranks": 2, "tensor_parallel": 2}, None),
    ],
)
def test_possible_and_impossible_roles_of_ranks(count, settings, message):
    with pytest.raises(ConfigError) if message else nullcontext() as refused:
        check_roles(count, EngineConfig(**settings))
    assert message is None or str(refused.value) == message


def test_engine_ranks_that_share_a_gpu_with_a_learner_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_devices(EngineConfig())
    with pytest.raises(ConfigError, match=r"^engine\.ranks: found 1 GPUs for 2 ranks on this node, wanted one"):
        check_devices(EngineConfig(ranks=1))


def test_a_rank_s_place_in_the_job_and_in_its_role():
    places = [Job(None, rank, 3, 2, timedelta(1)).in_role() for rank in range(3)]
    assert places == [("learners", 0, 1), ("engines", 0, 2), ("engines", 1, 2)]
    assert Job(None, 2, 3, 0, timedelta(1)).in_role() == ("learners", 2, 3)


def test_work_is_done_once_per_node_also_by_a_role_that_starts_at_a_later_rank(monkeypatch):
    """Rank 0 of the node is a learner; the first of its two engine ranks does the work."""
    done = []
    monkeypatch.setattr("capo_fast.runtime.ranks.gather", lambda items, group: [*items, (None, None)])
    for rank, local_rank in ((0, 1), (1, 2)):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        once_a_node(lambda rank=rank: done.append(rank))
    assert done == [0]


class Unpicklable(Exception):
    def __init__(self, file, line):
        super().__init__(f"{file}:{line}")


def fail():
    raise Unpicklable("weights", 3)


@pytest.mark.parametrize("run", [on_first_rank, on_every_rank, once_a_node])
def test_an_unforeseen_error_has_its_traceback_on_its_own_rank(run, one_rank):
    with pytest.raises(Unpicklable, match="weights:3") as raised:
        run(fail)
    assert [each.name for each in raised.traceback][-1] == "fail"


def test_an_unforeseen_error_has_its_traceback_as_a_note_on_other_ranks():
    for function, kind, text in (
        (fail, RuntimeError, "Unpicklable: weights:3"),
        ({}.popitem, KeyError, "dictionary is empty"),
    ):
        with pytest.raises(Exception) as raised:
            function()
        sent = pickle.loads(pickle.dumps(portable(raised.value, "rank 1")))
        assert type(sent) is kind and text in str(sent)
        assert sent.__notes__[0].startswith("rank 1:\nTraceback") and "in test_an_unforeseen" in sent.__notes__[0]


def test_the_answers_of_an_engine_count_once(one_rank):
    assert EngineGroup(0, 1, is_first=True).gather([1, 2]) == [1, 2]
    assert EngineGroup(0, 1, is_first=False).gather([1, 2]) == []


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_seed_repeats_every_generator():
    seed_everything(2**40 + 3)
    first = draws()
    seed_everything(2**40 + 3)
    assert draws() == first
    seed_everything(2**40 + 4)
    assert not set(draws()) & set(first)
