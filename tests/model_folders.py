"""Copies of the shipped model with one change each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from scripted_world import MODEL

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(MODEL, folder, copy_function=shutil.copyfile))


def configured(folder: Path, **entries) -> None:
    """Set entries of config.json; None removes one."""
    found = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def reweighted(folder: Path, change) -> None:
    """`change` gets the tensors by name, and returns new ones or changes them in place."""
    weights = load_file(folder / SINGLE)
    save_file(change(weights) or weights, folder / SINGLE, {"format": "pt"})


def without(*names: str):
    def change(weights):
        for name in names:
            del weights[name]

    return change


def sharded(folder: Path) -> None:
    """Split the weights into two files with an index."""
    weights = load_file(folder / SINGLE)
    names = sorted(weights)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in (0, 1)}
    for part, members in parts.items():
        save_file({name: weights[name] for name in members}, folder / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: part for part, members in parts.items() for name in members}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / SINGLE).unlink()


def with_tokens(folder: Path, last: int, special: bool = True) -> None:
    """Add tokens up to the id `last`."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    first = max(token["id"] for token in tokenizer["added_tokens"]) + 1
    first = max(first, *(id_ + 1 for id_ in tokenizer["model"]["vocab"].values()))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": i, "content": f"<{i}>", "special": special} | flags for i in range(first, last + 1)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
