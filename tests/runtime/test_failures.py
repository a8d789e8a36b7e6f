"""A run on two ranks, one of which fails, is killed or hangs: its output, and the exit of all ranks."""

from __future__ import annotations

import socket
from datetime import timedelta
from threading import Event
from types import SimpleNamespace

import psutil
import pytest
import ranks_run
import torch.distributed as dist
from forked import run_ranks

from capo_fast.errors import CapoError
from capo_fast.runtime import failures
from capo_fast.runtime.failures import RankLost, connection_lost, watched
from capo_fast.runtime.hosts import Place
from capo_fast.runtime.job import Job, enter_job, leave_job, this_job
from capo_fast.runtime.watch import KEY

pytestmark = pytest.mark.usefixtures("fork_server")
BROKEN = ("Connection closed", "Connection reset", "gloo/transport")


def two_ranks(folder, fault, *arguments):
    """The exit statuses and the output of a run of two ranks; `fault` is injected into the second."""
    short = ["--run.dir", str(folder), "--train.steps", "1", "--eval.path", "none", "--algorithm", "grpo"]
    return run_ranks(ranks_run.main, folder.with_suffix(".log"), f"{fault}:1", *short, *arguments)


def own_lines(output):
    return [line for line in output.splitlines() if line.startswith("capo_fast")]


def test_the_error_of_a_rank_is_shown_first_and_once(tmp_path):
    statuses, output = two_ranks(tmp_path / "run", "error")
    assert statuses == [1, 1]
    assert own_lines(output) == [
        "capo_fast, rank 1: error: the engine ran out of something",
        "capo_fast: error: rank 1 failed; its error is the one to read",
    ]
    assert "Traceback" not in output
    assert not any(word in output for word in BROKEN)


def test_a_bug_of_a_rank_prints_only_its_traceback(tmp_path):
    statuses, output = two_ranks(tmp_path / "run", "bug")
    assert statuses == [1, 1]
    assert output.count("Traceback (most recent call last)") == 1
    assert output.index("KeyError: 'no such key'") < output.index("capo_fast: error: rank 1 failed")
    assert not any(word in output for word in BROKEN)


def test_a_rank_that_is_killed_ends_the_others_with_a_line(tmp_path):
    statuses, output = two_ranks(tmp_path / "run", "kill")
    assert statuses == [1, -9]
    assert own_lines(output) == ["capo_fast: error: rank 1 died without an error message, as if killed"]
    assert "Traceback" not in output


def test_an_error_on_all_ranks_is_shown_once(tmp_path):
    statuses, output = two_ranks(tmp_path / "run", "none", "--data.path", "nowhere.jsonl")
    assert statuses == [2, 2]
    note, error, other = own_lines(output)
    assert "note: without --config" in note and "nowhere.jsonl" in error
    assert "failed; its error is the one to read" in other and "nowhere.jsonl" not in other


def test_a_stage_of_a_run_past_its_deadline_writes_the_stacks_of_all_ranks(tmp_path):
    statuses, output = two_ranks(tmp_path / "run", "hang", "--train.stage_timeout_s", "3")
    assert statuses == [1, 1]
    assert "capo_fast, rank 1: error: stage rollout has lasted more than 3 s (train.stage_timeout_s)" in output
    assert stacks(output, 0, "dist.barrier()") and stacks(output, 1, "in inject")


def test_a_waiting_rank_with_a_later_deadline_writes_its_stacks_too(tmp_path):
    statuses, output = run_ranks(ranks_run.hang, tmp_path / "run.log")
    assert statuses == [1, 1]
    assert "capo_fast, rank 1: error: stage rollout has lasted more than 0.5 s (train.stage_timeout_s)" in output
    for rank, place in ((0, "gather(["), (1, "in inject")):
        assert stacks(output, rank, place) and stacks(output, rank, "thread idle"), output


def stacks(output, rank, place):
    """The lines of a rank's stacks that contain a place."""
    mine = [line for line in output.splitlines() if line.startswith(f"capo_fast, rank {rank}: ")]
    return [line for line in mine if place in line]


def test_a_request_to_a_silent_store_times_out(monkeypatch):
    monkeypatch.setattr(failures, "PEER_S", 0.05)
    with pytest.raises(dist.DistStoreError, match="no answer"):
        failures._with_timeout(Event().wait)
    with pytest.raises(ZeroDivisionError):
        failures._with_timeout(lambda: 1 / 0)
    assert failures._with_timeout(lambda: 3) == 3


def test_errors_of_a_lost_connection_are_recognised():
    lost = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:14753")
    wrapped = CapoError("step 2 not saved")
    wrapped.__cause__ = lost
    assert connection_lost(lost) and connection_lost(wrapped) and connection_lost(dist.DistNetworkError("gone"))
    assert not connection_lost(RuntimeError("CUDA out of memory")) and not connection_lost(None)
    assert not connection_lost(CapoError("critic at http://host: no answer: Connection refused"))
    late = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation")
    duplicate = dist.DistBackendError("NCCL error: invalid usage. Duplicate GPU detected")
    assert not connection_lost(late) and not connection_lost(duplicate)


def test_an_error_of_a_user_s_service_is_not_a_lost_peer():
    """A credit function may call one; its error and traceback are the ones to read."""
    refused = ConnectionRefusedError(111, "Connection refused")
    of_other_process = RuntimeError("HTTPError: Connection reset by peer")  # as `errors.portable` makes it
    assert not connection_lost(refused) and not connection_lost(of_other_process)
    with pytest.raises(KeyError) as handled:
        _lookup_after(refused)
    assert handled.value.__context__ is refused and not connection_lost(handled.value)


def test_an_error_of_closing_after_a_lost_peer_is_of_the_lost_peer():
    with pytest.raises(KeyError) as handled:
        _lookup_after(RuntimeError("[/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"))
    assert connection_lost(handled.value)


def _lookup_after(error):
    """Raises a KeyError while the error is handled."""
    try:
        raise error
    except (OSError, RuntimeError):
        {}["score"]


@pytest.fixture
def store():
    """The store of a job of two ranks; this is the second."""
    store = dist.HashStore()
    enter_job(Job(store, 1, 2, 0, timedelta(seconds=5), (Place("here", 0, "127.0.0.1"),) * 2))
    yield store
    leave_job()


def test_the_line_of_a_lost_rank_is_shown_at_once_and_once(store, capsys):
    """The launcher may kill this process before its main thread notices."""
    this_job().lost.handled.set()
    failures._end_after(failures.Peers(), pytest.fail, "rank 0 died without an error message")
    assert capsys.readouterr().err.endswith(": error: rank 0 died without an error message\n")
    assert not failures.Peers().shows_line()


def test_a_rank_that_connects_after_rank_0_failed_names_it(store):
    """Rank 0's server is closed; the refused connection is not reported as this rank's error."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        store.set(KEY, f"{closed.getsockname()[1]} {bytes(16).hex()}")
    store.set(failures.FIRST, f"rank 0 failed{failures.ADVICE}")
    store.set(failures.SHOWN, "2")
    with pytest.raises(RankLost, match=r"^rank 0 failed; its error is the one to read$") as lost, watched():
        pytest.fail("rank 0 has exited")
    assert lost.value.exit_status == 2


def test_the_launcher_above_a_script_is_found(monkeypatch):
    def hidden():
        raise psutil.AccessDenied

    words = (["bash", "rank.sh"], ["python", "/bin/torchrun", "-m", "x"], ["bash", "job.sh"])
    parents = [SimpleNamespace(cmdline=lambda each=each: each) for each in words]
    monkeypatch.setattr(failures.psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv(failures.UNDER_TORCHRUN, raising=False)
    assert failures._launcher() is None
    monkeypatch.setenv(failures.UNDER_TORCHRUN, "7")
    assert failures._launcher() is parents[1]
    parents[1].cmdline = hidden
    assert failures._launcher() is parents[0], "the parent, if no process is torchrun"
