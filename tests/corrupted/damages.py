"""Damages to a file of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

NEWEST, OLDER = "checkpoints/step_000002", "checkpoints/step_000001"
SECTIONS = ("learner", "progress", "settings", "inputs", "records", "carry")
CASES = {
    "config.yaml": "summary.json",
    "metrics.jsonl": "config.yaml",
    "rollouts/000002.jsonl.gz": "rollouts/000001.jsonl.gz",
    "summary.json": "config.yaml",
    "model/config.json": "model/generation_config.json",
    "model/model.safetensors": f"{NEWEST}/model-00000.safetensors",
    "model/tokenizer.json": "model/config.json",
    f"{NEWEST}/manifest.json": f"{OLDER}/manifest.json",
    f"{NEWEST}/model-00000.safetensors": f"{OLDER}/model-00000.safetensors",
    f"{NEWEST}/optimizer-00000.safetensors": f"{NEWEST}/model-00000.safetensors",
    f"{NEWEST}/rng-00000.json": f"{OLDER}/rng-00000.json",
    f"{NEWEST}/carry.safetensors": f"{NEWEST}/model-00000.safetensors",
    **{f"{NEWEST}/{name}.json": f"{OLDER}/{name}.json" for name in SECTIONS},
    NEWEST: OLDER,
    "checkpoints": "rollouts",
}
"""The files and folders of a run, and the one that each is swapped with."""


def damage(run: Path, name: str, way: str) -> bool:
    """Apply the damage `way` to the file `name`. Returns False if it does not apply to a folder."""
    path = run / name
    if path.is_dir() and way not in ("delete", "swap", "link"):
        return False
    if way == "swap":
        swap(path, run / CASES[name])
    else:
        DAMAGES[way](path)
    return True


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * share), len(data) - 1)] ^= 0x41
    path.write_bytes(data)


def swap(one: Path, two: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)


def link(path: Path) -> None:
    moved = path.with_name(f"{path.name}.moved")
    path.rename(moved)
    path.symlink_to(moved)


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "head": lambda path: flip(path, 0.0),
    "middle": lambda path: flip(path, 0.5),
    "tail": lambda path: flip(path, 1.0),
    "truncate": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "delete": delete,
    "object": lambda path: path.write_text("{}\n"),
    "list": lambda path: path.write_text("[1]\n"),
    "swap": delete,  # `damage` handles it
    "link": link,
}
"""Damages by name."""
