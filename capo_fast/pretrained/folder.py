"""`check_model_folder`: the check that precedes every load of a model.

Policy, critic, reference, LoRA base and vLLM's own loader all read the same folder. transformers fills missing weights
with random numbers, and vLLM with zeros; this check refuses a folder unless its files have every weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, Literal

from capo_fast.errors import ConfigError, cause_of
from capo_fast.pretrained.config import (
    TESTED,
    check_kind,
    check_trainable,
    quantisation,
    read_config,
    read_object,
)
from capo_fast.pretrained.weights import check_weights, holders_of, listed, weight_files


def check_model_folder(
    path: str,
    key: str = "model.path",
    use: Literal["train", "sample"] = "train",
    untested: bool = False,
    fetch: bool = True,
) -> Any:
    """The model's transformers config, if its folder is valid. Reads only the headers of weight files.

    path: a folder or a hub id, which is downloaded. key: the setting that names it. use: "train" if the trainer
    computes with it, "sample" if only the engine does, which supports quantised weights and more architectures.
    untested: accept an architecture outside `TESTED` in the trainer. fetch: False skips the weights of a hub id. Raises
    ConfigError that names missing, unexpected or invalid contents.
    """
    where = f"{key}: {path}"
    config = read_config(path, key)
    if use == "train":
        check_trainable(config, where, untested)
    if not fetch and not Path(path).is_dir():
        return config
    folder = _local_folder(path, where)
    if (folder / GENERATION).is_file():
        read_object(folder / GENERATION, where)  # transformers and vLLM would ignore an invalid one
    model = check_weights(folder, config, where)
    if config.model_type in TESTED and (found := config.get_text_config().hidden_act) != "silu":
        raise ConfigError(
            f"{where}: config.json has hidden_act {found}, wanted silu: vLLM's {config.model_type} has no other"
        )
    if use == "train":
        _check_layers(model, f"{where}: a {config.model_type} model")
    return config


def _check_layers(model: Any, prefix: str) -> None:
    """Raises ConfigError for a layout that the trainer can't shard over ranks, or push to vLLM."""
    if not hasattr(getattr(model, "model", None), "layers"):
        raise ConfigError(f"{prefix} has no model.layers, which the trainer needs to shard it")
    if fused := next((name for name, weight in model.named_parameters() if weight.dim() > 2), None):
        raise ConfigError(f"{prefix} has fused experts ({fused}), wanted a dense model: vLLM wants separate experts")


def generation_file(path: str) -> bytes | None:
    """The bytes of `generation_config.json` of a folder or hub id; None if there is none."""
    from transformers.utils import cached_file  # takes seconds; importing this module does not

    found = cached_file(path, GENERATION, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found).read_bytes()


GENERATION = "generation_config.json"


def weight_holders(path: str, key: str = "model.path") -> dict[str, Path]:
    """The file of each weight of a folder or hub id that `check_model_folder` has accepted, by name."""
    where = f"{key}: {path}"
    return holders_of(weight_files(_local_folder(path, where, fetched=True), where), where)


def check_engine_weights(path: str, config: Any, held: Set[str]) -> None:
    """Raises ConfigError if an engine that has loaded the folder has other weights than its files, by name.

    vLLM skips some biases that its architecture lacks. Only `TESTED` architectures have the same names in vLLM.
    """
    if config.model_type not in TESTED or quantisation(config):
        return
    where = f"model.path: {path}"
    # Old versions of transformers stored the rotary frequencies.
    stored = {name for name in weight_holders(path) if not name.endswith("rotary_emb.inv_freq")}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if differing := (stored ^ held) - tied:
        names = listed("on one side only", differing)
        raise ConfigError(f"{where}: vLLM computes with other weights than the files have, {names}")


def check_engine_values(path: str, config: Any, sums: Callable[[], Mapping[str, float]]) -> None:
    """`check_finite` for an engine's weights, if their architecture and type can be checksummed."""
    if config.model_type in TESTED and not quantisation(config):
        check_finite(path, sums())


def check_finite(path: str, sums: Mapping[str, float], key: str = "model.path") -> None:
    """Raises ConfigError with the weights whose sum is NaN or infinite, because one of their values is.

    sums: the sum over all values of each loaded weight, by name.
    """
    if not (names := sorted(name for name, found in sums.items() if not math.isfinite(found))):
        return
    where = f"{key}: {path}"
    holders = weight_holders(path, key)
    inside = holders[names[0]].name if names[0] in holders else "the weight files"
    raise ConfigError(f"{where}: found NaN or infinite values in {inside}, {listed('with such', names)}")


WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md")
"""README.md has the model's licence, which the card of the trained model repeats."""
LEFT_OUT = ("*/*", "consolidated*")
"""Copies of the weights in other formats."""


def _local_folder(path: str, where: str, fetched: bool = False) -> Path:
    """The local folder of a path or hub id. fetched: read the cache alone, so that not every rank calls the hub."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download  # a local folder needs no client

    wanted: dict[str, Any] = {"allow_patterns": list(WANTED_FILES), "ignore_patterns": list(LEFT_OUT)}
    try:
        folder = Path(snapshot_download(path, **wanted, local_files_only=fetched))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: the weights can't be fetched: {cause_of(error)}") from error
    check_kind(folder, where)
    return folder
