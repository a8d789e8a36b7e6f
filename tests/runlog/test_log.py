"""The log of a run: closing it, and steps without a rollout file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from capo_fast.config.schema import Config
from capo_fast.runlog.log import RunLog
from capo_fast.runlog.progress import Progress
from capo_fast.runlog.recorder import RunFolder, packed_rows


class Noting:
    """Records the calls of all its methods."""

    def __init__(self, calls, name):
        self._calls, self._name = calls, name

    def __getattr__(self, method):
        return lambda *arguments: self._calls.append((self._name, method, *arguments))


class FullDisk(Noting):
    def close(self):
        self._calls.append((self._name, "close"))
        raise OSError("no space left")


def made(calls, recorder):
    stages = SimpleNamespace(deadline=Noting(calls, "deadline"))
    parts = (Noting(calls, "folder"), Progress(step=3), recorder, Noting(calls, "console"), stages)
    return RunLog(Config(), *parts, started=0.0)


def test_close_waits_for_a_checkpoint_with_a_deadline_whatever_else_fails():
    calls = []
    with pytest.raises(OSError, match="no space"):
        made(calls, FullDisk(calls, "recorder")).close()
    waited = [("deadline", "start", "checkpoint"), ("folder", "close"), ("deadline", "stop")]
    assert calls == [("deadline", "stop"), ("console", "close"), ("recorder", "close"), *waited]


def test_rollouts_without_rows_have_a_note_and_no_file(one_rank, tmp_path):
    """The batch was sampled ahead with run.keep_rollouts: none; the resumed run keeps rollouts."""
    calls = []
    log = made(calls, RunFolder(tmp_path))
    log._write_rollouts(SimpleNamespace(rows=[b"", b""], figures=["some"]))
    assert not list((tmp_path / "rollouts").iterdir())
    assert [call[:2] for call in calls] == [("console", "note")] and "step 3" in calls[0][2]
    log._write_rollouts(SimpleNamespace(rows=[b"", packed_rows([{"text": "a"}])], figures=["some"]))
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["000003.jsonl.gz"] and len(calls) == 1
