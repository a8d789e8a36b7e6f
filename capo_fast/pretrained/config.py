"""Reads and checks a model's `config.json`; one line names why the trainer or the engine can't build the model.

transformers is imported inside functions, because the import takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capo_fast.errors import ConfigError, cause_of

TESTED = ("qwen2", "qwen3", "llama")
"""Dense architectures whose weight names vLLM's loader accepts. It rejects transformers 5's names of fused experts."""

SCALED_ALREADY = ("longrope", "llama3", "yarn")
"""Rope types whose `max_position_embeddings` may be the extended length; other types multiply it by their factor."""


def read_config(path: str, key: str = "model.path") -> Any:
    """The transformers config of a folder or hub id. The model's own code is never run. Raises ConfigError."""
    from transformers import AutoConfig

    where = f"{key}: {path}"
    found = _config_entries(_config_file(path, where), where)
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # config classes raise ValueError, KeyError, AttributeError, TypeError and their own
        raise ConfigError(f"{where}: transformers can't read its config.json: {cause_in(found, error)}") from error


def check_trainable(config: Any, where: str, untested: bool) -> None:
    """Raises ConfigError for models that the trainer does not support: other architectures, quantised weights, and a
    head with more than a linear layer."""
    if config.model_type not in TESTED and not untested:
        raise ConfigError(
            f"{where} is a {config.model_type} model, want one of {', '.join(TESTED)} (or set model.untested true)"
        )
    if method := quantisation(config):
        raise ConfigError(f"{where}: found quantised weights ({method}), wanted plain ones, which can be trained")
    for name in SCALED_HEADS:
        if (value := getattr(config.get_text_config(), name, None)) not in (None, 1.0):
            raise ConfigError(f"{where}: found {name} {value:g}, wanted a model without it: the trainer ignores it")


SCALED_HEADS = ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale")
"""Entries of Gemma 2, Granite and Cohere that change logits."""


def check_context(config: Any, tokens: int, key: str = "engine.max_model_len") -> None:
    """Raises ConfigError if a sequence of this many tokens exceeds the model's positions. key: the setting with the
    number."""
    longest = positions(config)
    if longest is not None and tokens > longest:
        raise ConfigError(
            f"{key}: found {tokens}, wanted at most {longest}, the positions of the model "
            "(max_position_embeddings and the rope factor in its config.json)"
        )


def positions(config: Any) -> int | None:
    """The number of positions that the model supports; None if its config does not contain it."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if longest is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    unscaled = rope.get("original_max_position_embeddings", 0)
    if rope.get("rope_type", "default") not in SCALED_ALREADY:
        unscaled = longest
    return max(longest, int(unscaled * (rope.get("factor") or 1)))


def quantisation(config: Any) -> str | None:
    """The name of the weights' quantisation method; None for plain weights."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    entries = found if isinstance(found, Mapping) else vars(found)
    return str(entries.get("quant_method", "of an unknown method"))


def cause_in(entries: Mapping[str, Any], error: BaseException) -> str:
    """The config's entry whose value transformers did not find (a rope type, a dtype), else the error."""
    value = error.args[0] if isinstance(error, KeyError) and error.args else getattr(error, "name", None)
    name = _entry_of(entries, value) if isinstance(value, str) else None
    return cause_of(error) if name is None else f"{name} {value!r} is unknown"


def _entry_of(entries: Mapping[str, Any], value: str) -> str | None:
    """The name of the entry with this value, at any depth."""
    for name, found in entries.items():
        if isinstance(found, Mapping) and (inner := _entry_of(found, value)):
            return inner
        if found == value:
            return name
    return None


def _config_file(path: str, where: str) -> Path:
    from transformers.utils import cached_file

    folder = Path(path)
    if folder.is_dir():
        check_kind(folder, where)
        return folder / "config.json"
    try:
        return Path(cached_file(path, "config.json"))
    except OSError as error:
        raise ConfigError(
            f"{where} is neither a model folder nor an id that can be fetched "
            "(without a network, HF_HUB_OFFLINE=1 avoids the retries)"
        ) from error


def check_kind(folder: Path, where: str) -> None:
    """Raises ConfigError unless the folder has a config.json and no adapter, which transformers would load as well."""
    there = {name for name in ("config.json", ADAPTER, "config.yaml") if (folder / name).is_file()}
    if there >= {"config.json", ADAPTER}:
        raise ConfigError(f"{where}: found {ADAPTER} beside the model, wanted one or the other: merge the adapter")
    if ADAPTER in there:
        raise ConfigError(
            f"{where}: found a LoRA adapter, wanted a whole model: merge it into its base, or take the run's model/"
        )
    if "config.yaml" in there and (folder / "model").is_dir():
        raise ConfigError(f"{where}: found a run's folder, wanted its model/")
    if "config.json" not in there:
        raise ConfigError(f"{where}: no config.json, wanted a model's folder (config.json, safetensors, tokenizer)")


ADAPTER = "adapter_config.json"


def _config_entries(file: Path, where: str) -> dict[str, Any]:
    """The JSON object; its model type must be built into transformers."""
    from transformers import CONFIG_MAPPING, __version__

    found = read_object(file, where)
    kind = found.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError(f"{where}: config.json has no model_type, wanted one such as {', '.join(TESTED)}")
    if kind not in CONFIG_MAPPING:
        code = f"; its own code ({next(iter(auto.values()))}) is never run" if (auto := found.get("auto_map")) else ""
        raise ConfigError(f"{where}: model_type {kind} is unknown to transformers {__version__}{code}")
    _check_numbers(found, where)
    return found


SIZES = (
    *("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
    *("num_key_value_heads", "vocab_size"),
)


def _check_numbers(entries: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for invalid entries that Python's own errors would not name."""
    for name in SIZES:
        value = entries.get(name)
        if value is not None and not (isinstance(value, int) and value > 0):
            raise ConfigError(f"{where}: config.json has {name} {value!r}, wanted a positive integer")
    padding, size = entries.get("pad_token_id"), entries.get("vocab_size")
    if isinstance(padding, int) and size is not None and padding >= size:
        raise ConfigError(f"{where}: config.json has pad_token_id {padding}, wanted less than vocab_size, {size}")


def read_object(file: Path, where: str) -> dict[str, Any]:
    """The JSON object in a file of the model. Raises ConfigError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {file.name} is not JSON: {cause_of(error)}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {file.name} contains a JSON {type(found).__name__}, wanted an object")
    return found


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bar and warnings: our own error line names the fault."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
