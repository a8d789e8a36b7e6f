"""The text of `--help`: every setting with its type, its docstring, the paper's value and the embedded default's."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from capo_fast.config import schema as source
from capo_fast.config.load import (
    DEFAULT_FILE,
    SECTIONS,
    TYPES,
    build_config,
    config_as_dict,
    flatten,
    read_file,
    wanted,
)
from capo_fast.config.presets import ALGORITHMS
from capo_fast.config.schema import Config

WIDTH = 110

INTRODUCTION = """\
usage: python -m capo_fast.train [--config FILE] [--section.key VALUE ...]

Trains a policy with CAPO. With no arguments it trains the embedded default, tiny.yaml, on a CPU in minutes.

Settings come in layers, the later one wins key by key:
  1. the defaults below, which are the paper's CAPO set-up where the paper states one;
  2. one YAML file: --config FILE, else the packaged tiny.yaml; keys nested by section, dotted, or both;
  3. the command line: --section.key VALUE or --section.key=VALUE, names in full.
Naming an algorithm in a layer sets that algorithm's own keys, just before the layer's other keys. On the
command line it replaces the file's algorithm; naming the one that the file names already changes nothing.
Pairs are written 0.9,0.95. "none" clears a setting whose type says so. pkg://package/file is a packaged file."""


def usage() -> str:
    """The whole help text, at most `WIDTH` columns wide."""
    paper, tiny = flatten(config_as_dict(Config())), flatten(config_as_dict(build_config(read_file(DEFAULT_FILE))))
    lines = [INTRODUCTION, "", "algorithms, and what each sets:", *_algorithms()]
    lines += ["", "settings, [default] or [default; tiny.yaml: what it sets instead]:", "", "  --config FILE"]
    section = ""
    for key, kind in TYPES.items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", section]
        other = "" if tiny[key] == paper[key] else f"; tiny.yaml: {_value(tiny[key])}"
        lines += _wrapped(f"--{key}  {wanted(kind)}  [{_value(paper[key])}{other}]", 2, 8)
        lines += _wrapped(docstrings()[key], 6, 6)
    return "\n".join(lines)


@cache
def docstrings() -> dict[str, str]:
    """The docstring under every field of the configuration, by dotted key; Python keeps them only in the source."""
    names = {cls.__name__: f"{section}." for section, cls in SECTIONS.items()} | {"Config": ""}
    classes = [node for node in ast.parse(inspect.getsource(source)).body if isinstance(node, ast.ClassDef)]
    return {
        f"{names[cls.name]}{field}": " ".join(text.split())
        for cls in classes
        if cls.name in names
        for field, text in _documented(cls)
    }


def _documented(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(cls.body, cls.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, text


def _algorithms() -> list[str]:
    lines = []
    for name, keys in ALGORITHMS.items():
        settings = "  ".join(f"{key}={_value(value)}" for key, value in keys.items())
        lines += _wrapped(f"{name:<8}{settings}", 2, 10)
    return lines


def _value(value: Any) -> str:
    match value:
        case float():
            return f"{value:g}"
        case None | bool():
            return str(value).lower()
        case tuple():
            return ",".join(map(str, value))
    return str(value)


def _wrapped(text: str, first: int, rest: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
