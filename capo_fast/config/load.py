"""Builds a `Config` from layers of settings: files and command lines.

A later layer overrides earlier ones key by key: the defaults, each YAML file, the command line. The last layer that
names an algorithm selects it, and the algorithm's own keys (configs/algorithms/NAME.yaml) are applied just before that
layer's.

    defaults < file {algorithm: dapo, train.lr: 1e-6} < --seed 3                      DAPO, lr 1e-6, seed 3
    defaults < file {algorithm: dapo, train.lr: 1e-6} < --algorithm grpo --seed 3     GRPO, lr 1e-6, seed 3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter

from capo_fast.config.core_yaml import CoreDumper, CoreLoader
from capo_fast.config.paths import resolve_path
from capo_fast.config.schema import Config
from capo_fast.config.settings import Schema, schema_of, sections_in, shown
from capo_fast.config.sft import SftConfig
from capo_fast.errors import ConfigError

Kind = TypeVar("Kind")
DEFAULT_FILE = "pkg://capo_fast.configs/tiny.yaml"


def build_config(*layers: Mapping[str, Any]) -> Config:
    """The defaults under the given layers, whose keys may be nested, dotted or both. Checks types, not the rules.

    >>> build_config({"train": {"lr": "1e-6"}}, {"train.steps": 3}).train.lr
    1e-06
    """
    flat = [checked_layer(layer) for layer in layers]
    named = [index for index, layer in enumerate(flat) if "algorithm" in layer]
    if named:
        before, after = flat[: named[-1]], flat[named[-1] :]
        name = after[0]["algorithm"]
        flat = [*(without_other_algorithm(layer, name) for layer in before), read_algorithm(name), *after]
    return with_step_critic(build_kind(Config, *flat), flat[-1] if flat else {})


def without_other_algorithm(layer: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A flat layer without the settings of another algorithm than `name`. A layer that lacks some of that algorithm's
    keys keeps all of its own: they were chosen, while the config.yaml of a run has every setting."""
    theirs = read_algorithm(layer["algorithm"]) if layer.get("algorithm", name) != name else {}
    if not theirs.keys() <= layer.keys():
        return dict(layer)
    return {key: value for key, value in layer.items() if key not in theirs or value != theirs[key]}


def with_step_critic(config: Config, given: Mapping[str, Any]) -> Config:
    """The configuration in which `critic.step` replaces the critic's settings under critic.reads: step. given: settings
    of the last layer by key. Raises ConfigError if one of them would be overwritten unnoticed."""
    critic = config.critic
    if critic.reads == "solution":
        return config
    of_steps = {name: value for name, value in asdict(critic.step).items() if value is not None}
    for name, value in of_steps.items():
        found = given.get(f"critic.{name}", value)
        if found != value and f"critic.step.{name}" not in given:
            raise ConfigError(
                f"critic.{name}: found {shown(found)} with critic.reads: step, wanted critic.step.{name} instead"
            )
    own = {name: getattr(critic, name) for name in of_steps}
    return replace(config, critic=replace(critic, **of_steps, replaced=own))


def build_kind(kind: type[Kind], *layers: Mapping[str, Any]) -> Kind:
    """The defaults of a kind of configuration under exactly the given layers."""
    values = by_key(kind())
    for layer in layers:
        values |= checked_layer(layer, kind)
    return _assemble(kind, values)


def read_algorithm(name: str) -> dict[str, Any]:
    """The keys of a named algorithm, as a flat layer without the name itself."""
    return read_file(f"pkg://capo_fast.configs/algorithms/{name}.yaml")


def by_key(config: Any) -> dict[str, Any]:
    """Every value by its dotted key."""
    return {key: attrgetter(key)(config) for key in schema_of(type(config)).settings}


def config_as_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dictionaries for YAML and JSON; tuples become lists. The critic's settings are those
    that it uses."""
    nested = TypeAdapter(type(config)).dump_python(config, mode="json")
    for section, _, name in (key.partition(".") for key in getattr(config, "UNUSED", ())):
        del nested[section][name]
    return nested


def dump_config(config: Any) -> str:
    """YAML text that loads back to an equal configuration, also if another algorithm or critic.reads is named over it:
    the critic has its own settings. ASCII, because PyYAML misreads some of its own Unicode."""
    if isinstance(config, Config):
        config = replace(config, critic=replace(config.critic, **config.critic.replaced))
    return yaml.dump(config_as_dict(config), Dumper=CoreDumper, sort_keys=False)


def changed_settings(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two starts of one run but must not: both values by key.

    >>> changed_settings(build_config({"seed": 1}), build_config({"seed": 2, "train.steps": 9}))
    {'seed': (1, 2)}
    """
    old, new = by_key(before), by_key(now)
    fixed = (key for key, setting in schema_of(type(now)).settings.items() if not setting.may_change)
    return {key: (old[key], new[key]) for key in fixed if old[key] != new[key]}


def read_file(name: str | Path, kind: Any = Config) -> dict[str, Any]:
    """A YAML file as a flat layer."""
    path = resolve_path(str(name))
    try:
        return checked_layer(_mapping(path), kind)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_run(path: Path) -> Config | SftConfig:
    """The `config.yaml` of a run of `capo train` or `capo sft`; only the latter has a task."""
    try:
        found = _mapping(path)
        return build_kind(SftConfig, found) if "task" in found else build_config(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file. Raises ConfigError without the file's name, with the line if known."""
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=CoreLoader)
    except OSError as error:
        raise ConfigError(f"can't read the configuration: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{line}malformed YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"malformed YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError("malformed YAML: nested too deep") from None
    if not isinstance(mapping, dict) or not mapping:
        raise ConfigError(f"found {shown(mapping) if mapping else 'nothing'}, wanted a mapping of settings")
    return mapping


def checked_layer(layer: Mapping[Any, Any], kind: Any = Config) -> dict[str, Any]:
    """A layer with dotted keys and values checked against the types and bounds of their settings.

    >>> checked_layer({"rollout": {"n": "8"}, "train.lr": 1})
    {'rollout.n': 8, 'train.lr': 1.0}
    """
    flat: dict[str, Any] = {}
    schema = schema_of(kind)
    for key, value in _leaves(layer, schema):
        if key in flat:
            raise ConfigError(f"{key}: given twice, in its section and with a dot")
        flat[key] = schema.find(key).convert(value)
    return flat


def _leaves(layer: Mapping[Any, Any], schema: Schema, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if key not in schema.sections:
            yield key, value
        elif isinstance(value, Mapping):
            yield from _leaves(value, schema, f"{key}.")
        elif value is not None:  # a section whose keys are all commented out is None
            raise ConfigError(f"{key}: found {shown(value)}, wanted a mapping of this section's settings")


def _assemble(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
    """An instance of the class from values by dotted key."""
    fields = {key: value for key, value in values.items() if "." not in key}
    for name, inner in sections_in(cls).items():
        start = f"{name}."
        inside = {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
        fields[name] = _assemble(inner, inside)
    return cls(**fields)
