"""From files and the command line to a `Config`.

Layers, the later one wins key by key: the dataclasses' defaults, one YAML file, the command line. The own keys of the
named algorithm (`ALGORITHMS`) come in just before those of the layer that names it. A command line with another
algorithm than the file's takes the file's algorithm back as a whole; one with the same changes nothing.

    defaults < file {algorithm: dapo, train.lr: 1e-6} < --seed 3                      DAPO, lr 1e-6, seed 3
    defaults < file {algorithm: dapo, train.lr: 1e-6} < --algorithm grpo --seed 3     GRPO, lr 1e-6, seed 3
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from capo_fast.config.paths import resolve_path
from capo_fast.config.presets import ALGORITHMS
from capo_fast.config.rules import validate
from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError

DEFAULT_FILE = "pkg://capo_fast.configs/tiny.yaml"

SECTIONS: dict[str, Any] = {k: t for k, t in get_type_hints(Config).items() if dataclasses.is_dataclass(t)}
"""Dataclass of every section, by its name."""

TYPES: dict[str, Any] = {k: t for k, t in get_type_hints(Config).items() if k not in SECTIONS} | {
    f"{section}.{key}": kind for section, cls in SECTIONS.items() for key, kind in get_type_hints(cls).items()
}
"""Type of every setting, by its dotted key."""


def load_config(argv: Sequence[str]) -> Config:
    """The validated configuration of a command line; `--help` prints the settings and exits."""
    if any(word in ("-h", "--help") for word in argv):
        from capo_fast.config.help import usage

        print(usage())
        sys.exit(0)
    given = read_arguments(argv)
    file = given.pop("config", DEFAULT_FILE)
    return validate(build_config(read_file(file), given))


def build_config(*layers: Mapping[str, Any]) -> Config:
    """The defaults under the given layers, whose keys may be nested, dotted or both. Checks types, not the rules.

    >>> build_config({"train": {"lr": "1e-6"}}, {"train.steps": 3}).train.lr
    1e-06
    """
    flat = [flatten(layer) for layer in layers]
    algorithm, place = Config.algorithm, 0
    for index, layer in enumerate(flat):
        if layer.get("algorithm", algorithm) != algorithm:
            algorithm, place = layer["algorithm"], index
    flat.insert(place, ALGORITHMS[algorithm])
    values = flatten(config_as_dict(Config()))
    for layer in flat:
        values |= layer
    return _assemble(values)


def config_as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries; pairs are lists, so that YAML and JSON can hold it."""
    nested = dataclasses.asdict(config)
    for section in SECTIONS:
        nested[section] = {k: list(v) if isinstance(v, tuple) else v for k, v in nested[section].items()}
    return nested


def dump_config(config: Config) -> str:
    """YAML text that loads back to an equal configuration; ASCII, as PyYAML misreads some of its own Unicode output."""
    return yaml.safe_dump(config_as_dict(config), sort_keys=False)


def read_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """The command line as a flat layer, with the file of `--config` under "config"."""
    layer: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"{word}: unexpected argument; settings are given as --section.key value")
        key = flag.removeprefix("--")
        if key != "config":
            _known(key)
        if key in layer:
            raise ConfigError(f"{key}: given twice on the command line")
        text = value if equals else _value_after(flag, words)
        layer[key] = text if key == "config" else _convert(key, text)
    return layer


def read_file(name: str | Path) -> dict[str, Any]:
    """A YAML file as a flat layer."""
    path = resolve_path(str(name))
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
        if not isinstance(mapping, dict) or not mapping:
            raise ConfigError(f"found {_shown(mapping) if mapping else 'nothing'}, wanted a mapping of settings")
        return flatten(mapping)
    except OSError as error:
        raise ConfigError(f"{path}: can't read the configuration: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: malformed YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: malformed YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def flatten(layer: Mapping[Any, Any]) -> dict[str, Any]:
    """A layer with every key dotted and every value checked against the type of its setting.

    >>> flatten({"rollout": {"n": "8"}, "train.lr": 1})
    {'rollout.n': 8, 'train.lr': 1.0}
    """
    flat: dict[str, Any] = {}
    for key, value in _leaves(layer):
        if key in flat:
            raise ConfigError(f"{key}: given twice, in its section and with a dot")
        flat[key] = _convert(_known(key), value)
    return flat


def wanted(kind: Any) -> str:
    """A setting's type in words.

    >>> wanted(int | Literal["all", "none"])
    'integer | all | none'
    """
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return ",".join(wanted(item) for item in get_args(kind) if item is not Ellipsis)
    if get_args(kind):
        return " | ".join(wanted(item) for item in get_args(kind))
    return {bool: "true | false", int: "integer", float: "number", str: "text", NoneType: "none"}[kind]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value} given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _leaves(layer: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in layer.items():
        if key not in SECTIONS:
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in value.items())
        elif value is not None:  # a section whose keys are all commented out is None
            raise ConfigError(f"{key}: found {_shown(value)}, wanted a mapping of this section's settings")


def _assemble(values: Mapping[str, Any]) -> Config:
    top = {key: value for key, value in values.items() if "." not in key}
    for section, cls in SECTIONS.items():
        top[section] = cls(**{f.name: values[f"{section}.{f.name}"] for f in dataclasses.fields(cls)})
    return Config(**top)


def _value_after(flag: str, words: Iterator[str]) -> str:
    value = next(words, None)
    if value is None or value.startswith("--"):
        raise ConfigError(f"{flag}: wants a value, as {flag} VALUE or {flag}=VALUE")
    return value


def _known(key: str) -> str:
    """The key itself, or an error that names the nearest one: a bare field name counts as its dotted key."""
    if key in TYPES:
        return key
    bare = {name.rpartition(".")[2]: name for name in reversed(TYPES)}
    near = difflib.get_close_matches(key, [*TYPES, *bare], n=1, cutoff=0.5)
    hint = f"did you mean {bare.get(near[0], near[0])}?" if near else "--help lists them all"
    raise ConfigError(f"{key if key and key.isprintable() else repr(key)}: unknown setting; {hint}")


def _convert(key: str, value: Any) -> Any:
    """The value in its setting's type; text is read as on a command line."""
    kind = TYPES[key]
    members = (kind, *get_args(kind))
    read = _from_text(value, members) if isinstance(value, str) else value
    items = read if isinstance(read, list | tuple) else [read]
    try:
        if bool not in members and any(isinstance(item, bool) for item in items):  # pydantic takes true as 1
            raise TypeError
        return _adapter(key).validate_python(read)
    except (ValidationError, TypeError, OverflowError):
        raise ConfigError(f"{key}: found {_shown(value)}, wanted {wanted(kind)}") from None


def _from_text(text: str, members: tuple[Any, ...]) -> Any:
    if NoneType in members and text.lower() in ("none", "null"):
        return None
    return [item.strip() for item in text.split(",")] if get_origin(members[0]) is tuple else text


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(TYPES[key], config=ConfigDict(allow_inf_nan=False))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    return reprlib.repr(value)
