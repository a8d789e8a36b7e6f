"""Imported first by the trainer's entry points: names missing packages of the `train` extra in one line."""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = (
    *("bokeh", "jinja2", "math_verify", "peft", "psutil"),
    *("pydantic", "rich", "tensorboard", "transformers", "yaml"),
)

if missing := [name for name in NEEDED if find_spec(name) is None]:
    raise ImportError(
        f"the trainer needs {', '.join(missing)}: make setup, or pip install '.[train]' (capo_kernels does not)"
    )
