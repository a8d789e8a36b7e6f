"""Into how many equal slices a model's weights can be cut, by what vLLM's tensor parallelism divides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capo_fast.errors import ConfigError

KEYS = "num_key_value_heads"
"""Fewer of them than slices are copied."""
Sizes = Mapping[str, int]
"""Of a model, by their names in its config.json."""


def sizes_of(model: Any) -> Sizes:
    """What is cut of a model, by its text config."""
    heads = model.num_attention_heads
    return {
        "num_attention_heads": heads,
        KEYS: getattr(model, KEYS, None) or heads,
        "intermediate_size": getattr(model, "intermediate_size", None) or heads,
    }


def undivided(sizes: Sizes, slices: int) -> str | None:
    """The first of a model's sizes that can't be cut into so many slices; None where all can."""
    return next((name for name, size in sizes.items() if size % slices and (name != KEYS or slices % size)), None)


def check_divides(sizes: Sizes, slices: int, key: str = "engine.tensor_parallel") -> None:
    """Raises ConfigError where a model of these sizes can't be cut so. key: the setting that says into how many."""
    if (name := undivided(sizes, slices)) is not None:
        raise ConfigError(f"{key}: found {slices}, wanted a divisor of the model's {name}, {sizes[name]}")


def most_slices(sizes: Sizes, devices: int) -> int:
    """The most of these devices over which a model of these sizes can be cut."""
    return next(slices for slices in range(devices, 0, -1) if undivided(sizes, slices) is None)
