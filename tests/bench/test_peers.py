"""`python -m bench.peers` on a library made here: the outcome of each test, and the command's errors."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench import peers

LIBRARY = "def loss(value):\n    return value\n"
ADAPTER = """
def loss(value):
    if value == "sapo":
        raise ValueError("loss_type: got 'sapo', want one of 'grpo'")
    if value == "bad":
        raise ValueError("value: got 'bad', want another")
    return "ours"
"""
TESTS = """
import pytest
from library import loss

def test_passes(): assert loss(1) == "ours"
def test_is_refused():
    with pytest.raises(ValueError, match="other words"): loss("sapo")
def test_is_skipped(): pytest.skip("no")
def test_never_calls(): pass
def test_sequence_level_rejects_unsupported_loss_types():
    with pytest.raises(ValueError): loss(1)
"""
WRONG = """
def test_has_another_value(): assert loss(1) == "theirs"
def test_is_refused_for_another_reason(): loss("bad")
"""


def make_sdist(folder: Path, tests: str) -> peers.Peer:
    """A peer whose sdist is already in `folder`."""
    source = folder / "library-1.0"
    (source / "tests").mkdir(parents=True)
    files = {"library.py": LIBRARY, "adapter.py": ADAPTER, "tests/test_loss.py": tests, "tests/test_other.py": ""}
    for name, text in files.items():
        (source / name).write_text(text)
    archive = folder / "library-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        members.add(source, source.name)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return peers.Peer("library", "1.0", digest, {"library:loss": "adapter:loss"})


def test_each_test_has_one_outcome(tmp_path: Path) -> None:
    peer = make_sdist(tmp_path, TESTS + WRONG)
    source = peers.fetch(peer, tmp_path)
    files = peers.test_files(peer, source)
    assert files == [Path("tests/test_loss.py")]
    tests = peers.run(peer, source, files, short=False)
    found = [test.outcome for test in tests]
    assert found == ["passed", "refused", "skipped", "apart", "failed", "failed", "failed"]
    assert tests[1].reason == "loss_type: got 'sapo', want one of 'grpo'"
    assert tests[6].reason == "test_is_refused_for_another_reason: value: got 'bad', want another"
    assert re.search(r"`tests/test_loss.py` +\| 1 +\| 1 +\| +\| 1 +\| 1 +\| 3 ", peers.table(tests))
    assert "- 1 x refused: loss_type: got 'sapo'" in peers.reasons(tests)


def test_an_archive_of_another_digest_is_not_unpacked(tmp_path: Path) -> None:
    peer = make_sdist(tmp_path, TESTS)
    (tmp_path / peer.sdist).write_bytes(b"another")
    with pytest.raises(SystemExit, match="wrong sha256"):
        peers.fetch(peer, tmp_path)


@pytest.mark.parametrize("required", [False, True])
def test_a_failed_download_is_left_out_with_its_reason(
    required: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: again\nERROR: no matching distribution\n")

    monkeypatch.setattr(peers.subprocess, "run", no_network)
    monkeypatch.setattr(sys, "argv", ["peers", "trl", f"--folder={tmp_path}", *(["--required"] if required else [])])
    with pytest.raises(SystemExit) as ended:
        peers.main()
    assert bool(ended.value.code) == required
    assert capsys.readouterr().out == "trl 1.16.0: left out, not downloaded: ERROR: no matching distribution\n"
