"""Nested mappings by dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping, by dotted key.

    >>> dotted({"seed": 3, "rollout": {"n": 8, "top_p": 1.0}})
    {'seed': 3, 'rollout.n': 8, 'rollout.top_p': 1.0}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
