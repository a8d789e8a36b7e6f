"""The numbers of equal slices into which vLLM's tensor parallelism can cut a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capo_fast.errors import ConfigError

KEYS = "num_key_value_heads"
"""If there are fewer of them than slices, they are copied."""
Sizes = Mapping[str, int]
"""A model's sizes, by their names in its config.json."""


def sizes_of(model: Any) -> Sizes:
    """The sizes of a model that are divided, from its text config."""
    heads = model.num_attention_heads
    return {
        "num_attention_heads": heads,
        KEYS: getattr(model, KEYS, None) or heads,
        "intermediate_size": getattr(model, "intermediate_size", None) or heads,
    }


def undivided(sizes: Sizes, slices: int) -> str | None:
    """The first of a model's sizes that can't be cut into `slices`; None if all can."""
    return next((name for name, size in sizes.items() if size % slices and (name != KEYS or slices % size)), None)


def check_divides(sizes: Sizes, slices: int, key: str = "engine.tensor_parallel") -> None:
    """Raises ConfigError if a model of these sizes can't be cut into `slices`. key: the setting with this number."""
    if (name := undivided(sizes, slices)) is not None:
        raise ConfigError(f"{key}: found {slices}, wanted a divisor of the model's {name}, {sizes[name]}")


def most_slices(sizes: Sizes, devices: int) -> int:
    """The largest number of slices, at most `devices`, into which a model of these sizes can be cut."""
    return next(slices for slices in range(devices, 0, -1) if undivided(sizes, slices) is None)
