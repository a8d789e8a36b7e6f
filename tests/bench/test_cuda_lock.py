"""requirements/cuda_names.json, which bench/cuda_lock.py writes, against the sources and the lock."""

from __future__ import annotations

import json
from pathlib import Path

from bench.cuda_lock import FILE, missing, used_names
from bench.gpu.packages import listed, name_of

FOUND = json.loads(FILE.read_text(encoding="utf-8"))


def test_every_name_of_the_engine_and_the_policy_was_found_in_the_locks_wheels():
    """After a new name run `python -m bench.cuda_lock` in an environment of the lock."""
    assert used_names() == FOUND["names"]


def test_the_names_were_found_in_the_locked_versions():
    lock = Path(__file__).parents[2] / "requirements/cuda.txt"
    locked = {name_of(line): line.partition("==")[2] for line in listed(lock)}
    assert {name: locked[name] for name in FOUND["versions"]} == FOUND["versions"]


def test_a_name_missing_from_a_wheel_is_found():
    assert missing(["torch.zeros", "torch.no_such", "torch.no_such.name", "torch.optim.AdamW(no_such)"]) == [
        "torch.no_such",
        "torch.no_such.name",
        "torch.optim.AdamW(no_such)",
    ]
