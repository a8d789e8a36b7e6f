"""Comparison of two run folders, byte for byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from capo_fast.policy.shards import read_whole

COMPARED = ("metrics.jsonl", "rollouts/*.jsonl.gz", "model/*.safetensors", "adapter/*.safetensors")
"""Compared files, besides the tensors of the newest checkpoint."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """One value that differs between two runs; `line` counts from 1, 0 is the whole file."""

    file: str
    line: int
    key: str
    base: str
    head: str


def compared(run: Path) -> dict[str, Path]:
    """The compared files of a run and the folder of its newest checkpoint, by their names in the run."""
    found = [path for pattern in COMPARED for path in sorted(run.glob(pattern))]
    found += sorted(run.glob("checkpoints/step_*"))[-1:]
    return {str(path.relative_to(run)): path for path in found}


def differences(base: Path, head: Path, timed: Sequence[str] = ()) -> Iterator[Difference]:
    """Every value that differs between two runs, except keys that match a pattern of `timed`."""
    ones, twos = compared(base), compared(head)
    for name in {**ones, **twos}:
        if name in ones and name in twos:
            yield from _in_file(name, ones[name], twos[name], timed)
        else:
            yield Difference(name, 0, "file", *("present" if name in side else "absent" for side in (ones, twos)))


def _in_file(name: str, base: Path, head: Path, timed: Sequence[str]) -> Iterator[Difference]:
    equal = True
    for line, (one, two) in enumerate(zip_longest(_records(base), _records(head), fillvalue={}), start=1):
        for key in {**one, **two}:
            both = None if any(fnmatchcase(key, pattern) for pattern in timed) else _unequal(one, two, key)
            if both:
                equal = False
                yield Difference(name, line, key, *both)
    if equal and name.endswith(".gz") and base.read_bytes() != head.read_bytes():
        yield Difference(name, 0, "file", "bytes", "other bytes of equal values")


def _records(path: Path) -> list[Record]:
    """The lines of a file; all tensors of a file or a checkpoint count as one line."""
    if path.is_dir():
        return [_checkpoint(path)]
    if path.suffix == ".safetensors":
        return [load_file(path)]
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def _checkpoint(folder: Path) -> Record:
    """The whole tensors of all ranks; for a checkpoint of another format only its files' names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return {path.name: "a file of another format" for path in sorted(folder.iterdir())}
    roles = {path.name.split("-")[0] for path in files}
    whole = {role: read_whole(folder.glob(f"{role}-*.safetensors")) for role in sorted(roles)}
    return {f"{role}.{name}": tensor for role, tensors in whole.items() for name, tensor in tensors.items()}


def _unequal(one: Mapping[str, Any], two: Mapping[str, Any], key: str) -> tuple[str, str] | None:
    """Both values of a key as short texts; None if their bytes are equal."""
    pair = [record.get(key) for record in (one, two)]
    if all(isinstance(value, torch.Tensor) for value in pair):
        return _unequal_tensors(*pair)
    texts = [repr(record[key]) if key in record else "absent" for record in (one, two)]
    return None if texts[0] == texts[1] else _excerpts(*texts)


def _unequal_tensors(one: torch.Tensor, two: torch.Tensor) -> tuple[str, str] | None:
    """The first elements that differ in any bit."""
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return f"{one.dtype} {list(one.shape)}", f"{two.dtype} {list(two.shape)}"
    bits = [tensor.contiguous().reshape(-1, 1).view(torch.uint8) for tensor in (one, two)]
    places = (bits[0] != bits[1]).any(dim=1).nonzero()
    if not len(places):
        return None
    at = int(places[0])
    return f"{one.flatten()[at].item()!r} at {at}", f"{two.flatten()[at].item()!r} at {at}"


def _excerpts(one: str, two: str, before: int = 12, width: int = 40) -> tuple[str, str]:
    """Both texts around their first difference."""
    first = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    start = max(0, first - before)
    cut = [("..." if start else "") + text[start : start + width] for text in (one, two)]
    return cut[0], cut[1]
