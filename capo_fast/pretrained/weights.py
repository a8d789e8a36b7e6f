"""Compares a model's weight files with its architecture: names and shapes, read from the headers alone.

transformers makes the comparison: it loads tensors without storage ("meta") into a model without storage, by its own
rules for renamed, fused and tied weights. It is imported inside functions, because the import takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from capo_fast.errors import ConfigError, cause_of
from capo_fast.pretrained.config import cause_in, quantisation, quiet_transformers, read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHOWN = 3
"""Number of names in a message; the rest is counted."""


def check_weights(folder: Path, config: Any, where: str) -> Any:
    """The model without storage.

    Raises ConfigError with the first few names that are missing, unexpected or of another shape, and their number.
    Quantised weights have other names and shapes: every module must have at least one.
    """
    files = weight_files(folder, where)
    holders = holders_of(files, where)
    if (folder / INDEX).is_file():
        _check_index(_weight_map(folder, where), holders, where)
    shapes = {name: shape for file in files for name, shape in _shapes(file).items()}
    if quantisation(config):
        return _check_modules(config, shapes, where)
    model, faults = _compare(config, shapes, where)
    if faults:
        raise ConfigError(f"{where}: the weight files don't match config.json: {'; '.join(faults)}")
    if model.base_model_prefix == "model" and not any(name in shapes for name in model.state_dict()):
        raise ConfigError(f"{where}: the weights' names lack the prefix 'model.', which vLLM needs")
    _check_types(model, holders, where)
    _check_tied(model.all_tied_weights_keys, holders, where)
    return model


def weight_files(folder: Path, where: str) -> list[Path]:
    """The files that both transformers and vLLM read. Raises ConfigError."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        if SINGLE in found:
            raise ConfigError(f"{where}: found both {SINGLE} and {INDEX}, wanted one of them")
        return _indexed(folder, found, where)
    if SINGLE in found:
        if others := [name for name in found if name != SINGLE]:
            raise ConfigError(f"{where}: found {others[0]} beside {SINGLE}, which vLLM would read as well")
        return [folder / SINGLE]
    raise ConfigError(f"{where}: no weights, wanted {SINGLE} or {INDEX}{_pickled(folder)}")


def _pickled(folder: Path) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if not pickles:
        return ""
    return f"; {pickles[0]} is a pickle, which can run code: save_pretrained of transformers writes safetensors"


def _indexed(folder: Path, found: Sequence[str], where: str) -> list[Path]:
    """found: the names of all safetensors files of the folder."""
    files = sorted(set(_weight_map(folder, where).values()))
    for name in files:
        if Path(name).name != name or not (folder / name).is_file():
            raise ConfigError(f"{where}: {INDEX} names {name}, which is not there")
    for name in found:
        if name not in files and not name.startswith("consolidated"):  # Mistral's own format, which is not read
            raise ConfigError(f"{where}: found {name}, wanted only the files that {INDEX} names")
    return [folder / name for name in files]


def _weight_map(folder: Path, where: str) -> dict[str, str]:
    """The index: the file of each weight by name."""
    names = read_object(folder / INDEX, where).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{where}: {INDEX} has no weight_map from weights to files")
    return names


def holders_of(files: Sequence[Path], where: str) -> dict[str, Path]:
    """The file of each weight, by name. Raises ConfigError for a weight in two files: transformers takes the last."""
    holders: dict[str, Path] = {}
    for file in files:
        for name in names_in(file, where):
            if name in holders:
                raise ConfigError(f"{where}: found {name} in both {holders[name].name} and {file.name}, wanted it once")
            holders[name] = file
    return holders


def _check_index(index: Mapping[str, str], holders: Mapping[str, Path], where: str) -> None:
    """Raises ConfigError with the first weight whose file in the index is not the actual one."""
    for name in sorted(index.keys() | holders.keys()):
        if name not in holders:
            raise ConfigError(f"{where}: {INDEX} has {name} in {index[name]}, which does not contain it")
        if (listed_in := index.get(name)) != (actual := holders[name].name):
            entry = f"has in {listed_in}" if listed_in else "lacks"
            raise ConfigError(f"{where}: {actual} contains {name}, which {INDEX} {entry}")


def names_in(file: Path, where: str) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{where}: {file.name} can't be read, is it whole? {cause_of(error)}") from error


def _shapes(file: Path) -> dict[str, list[int]]:
    with safe_open(file, "pt") as opened:
        return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118  not a mapping


def _check_types(model: Any, holders: Mapping[str, Path], where: str) -> None:
    """Raises ConfigError for integers and 8-bit floats: they are quantised weights whose scales are missing."""
    for name, _ in model.named_parameters():
        if name in holders and (found := _type(holders[name], name)) not in PLAIN:
            raise ConfigError(
                f"{where}: {holders[name].name} has {name} as {found} and config.json no quantization_config, wanted "
                f"one of {', '.join(PLAIN)}"
            )


PLAIN = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are not quantised, by safetensors' names."""


def _type(file: Path, name: str) -> str:
    with safe_open(file, "pt") as opened:
        return str(opened.get_slice(name).get_dtype())


def _compare(config: Any, shapes: Mapping[str, Sequence[int]], where: str) -> tuple[Any, list[str]]:
    """The model without storage, and a text for each kind of difference."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    architecture = model_class(config, where)
    try:
        with quiet_transformers():
            model, info = architecture.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict=tensors,
                dtype=torch.float32,
                device_map={"": "meta"},
                attn_implementation="eager",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # model classes raise KeyError, AttributeError, TypeError, ValueError ...
        raise ConfigError(
            f"{where}: transformers can't build the model: {cause_in(config.to_dict(), error)}"
        ) from error
    mismatched = [f"{name} {list(found)}, wanted {list(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    kinds = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "of another shape": mismatched,
    }
    return model, [listed(kind, names) for kind, names in kinds.items() if names]


def model_class(config: Any, where: str) -> Any:
    """The model's class in transformers: its causal one, or else the first of its architectures."""
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    name = next(iter(config.architectures or []), None)
    if config.architectures and not isinstance(name, str):
        raise ConfigError(f"{where}: config.json has architectures {config.architectures}, wanted names")
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if name not in (None, causal.__name__):  # vLLM selects by this name
            raise ConfigError(f"{where}: config.json has architectures {name}, wanted {causal.__name__}")
        return causal
    if name is None or not hasattr(transformers, name):
        raise ConfigError(f"{where}: transformers has no causal language model of type {config.model_type}")
    return getattr(transformers, name)


def listed(kind: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return f"{len(ordered)} {kind}: {', '.join(ordered[:SHOWN])}{rest}"


def _check_modules(config: Any, shapes: Mapping[str, Sequence[int]], where: str) -> Any:
    plain = copy.deepcopy(config)
    del plain.quantization_config
    model, _ = _compare(plain, shapes, where)
    tied = model.all_tied_weights_keys
    wanted = {name.rpartition(".")[0] for name in model.state_dict() if name not in tied}
    if missing := wanted - {name.rpartition(".")[0] for name in shapes}:
        raise ConfigError(f"{where}: the weight files don't match config.json: {listed('missing', missing)}")
    return model


def _check_tied(tied: Mapping[str, str], holders: Mapping[str, Path], where: str) -> None:
    """Raises ConfigError if two tied weights in the files differ: transformers would untie them, vLLM would not."""
    for name, source in tied.items():
        if {name, source} <= holders.keys() and not torch.equal(_tensor(holders, name), _tensor(holders, source)):
            raise ConfigError(
                f"{where}: config.json ties {name} to {source}, but their values in the files differ; "
                "wanted tie_word_embeddings false, or one of them"
            )


def _tensor(holders: Mapping[str, Path], name: str) -> torch.Tensor:
    with safe_open(holders[name], "pt") as opened:
        return opened.get_tensor(name)
