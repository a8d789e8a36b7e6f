"""YAML 1.2 with the core schema (https://yaml.org/spec/1.2.2/#103-core-schema), on PyYAML, which implements 1.1.

010 is 10, 0o10 is 8, 1e-6 is a number; yes, on, 1:30, 1_000 and 2026-11-29 are text
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import yaml

_SCALARS: list[tuple[str, str, Callable[[str], Any]]] = [
    ("null", r"~|null|Null|NULL|", lambda text: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    ("int", r"[-+]?[0-9]+", int),
    ("int", r"0o[0-7]+", lambda text: int(text[2:], 8)),
    ("int", r"0x[0-9a-fA-F]+", lambda text: int(text[2:], 16)),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", lambda text: float(text.lower().replace(".", ""))),
]
"""Kind, pattern and reader of plain scalars. The first match counts; anything else is text."""


class CoreLoader(yaml.SafeLoader):
    """Refuses a key given twice; PyYAML would use the last one."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  `<<: *base` stays

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value} given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class CoreDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or the core schema would not read as text."""


def _construct(loader: CoreLoader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    kind = node.tag.rpartition(":")[2]
    with suppress(ValueError):  # for example an integer of 5,000 digits
        for name, pattern, read in _SCALARS:
            if name == kind and re.fullmatch(pattern, text):
                return read(text)
    raise yaml.MarkedYAMLError(problem=f"{reprlib.repr(text)} is not a valid {kind}", problem_mark=node.start_mark)


for _kind, _pattern, _ in _SCALARS:
    _tag = f"tag:yaml.org,2002:{_kind}"
    CoreLoader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), None)
    CoreLoader.add_constructor(_tag, _construct)
    CoreDumper.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), None)
