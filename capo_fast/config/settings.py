"""Every setting by its dotted key: how a value of it is read, and its bounds and docstring in words."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError

SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
WORDS = {
    **{"integer": "integer", "number": "number", "string": "text", "boolean": "true | false", "null": "none"},
    "object": "mapping as {name: value}",
}


@dataclass(frozen=True)
class Setting:
    """One setting."""

    key: str
    text: str
    """Its docstring on one line."""
    may_change: bool
    """Whether it may differ between the starts of one run."""
    type: Any
    """With its bounds."""

    @cached_property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the type."""
        return self._adapter.json_schema()

    @property
    def wanted(self) -> str:
        """The type and its bounds in words."""
        return in_words(self.schema)

    def convert(self, value: Any) -> Any:
        """The value in the setting's type, text as on a command line. Raises ConfigError."""
        try:
            read = self._from_text(value) if isinstance(value, str) else value
            items = read if isinstance(read, list | tuple) else [read]
            if not self._takes("boolean") and any(isinstance(item, bool) for item in items):  # pydantic takes true as 1
                raise TypeError
            return self._adapter.validate_python(read)
        except (ValidationError, TypeError, OverflowError, yaml.YAMLError):
            raise ConfigError(f"{self.key}: found {shown(value)}, wanted {self.wanted}") from None

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.type, config=ConfigDict(allow_inf_nan=False))

    def _from_text(self, text: str) -> Any:
        if self._takes("null") and text.lower() in ("none", "null"):
            return None
        if self._takes("object"):
            return yaml.safe_load(text)
        return [item.strip() for item in text.split(",")] if self._takes("array") else text

    def _takes(self, kind: str) -> bool:
        return any(each.get("type") == kind for each in self.schema.get("anyOf", [self.schema]))


def in_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words.

    >>> in_words({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"enum": ["all", "none"]}]})
    'integer > 0 | all | none'
    """
    match schema:
        case {"anyOf": kinds}:
            return " | ".join(map(in_words, kinds))
        case {"enum": words}:
            return " | ".join(words)
        case {"prefixItems": items}:
            return ",".join(map(in_words, items))
        case {"items": item}:
            return f"{in_words(item)},..."
    bounds = " and ".join(f"{sign} {schema[name]:g}" for name, sign in SIGNS.items() if name in schema)
    return f"{WORDS[schema['type']]} {bounds}".rstrip()


def shown(value: Any) -> str:
    """A value in an error's line."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    return reprlib.repr(value)


def find_setting(key: str) -> Setting:
    """Raises ConfigError that names the nearest key; a bare field name counts as its dotted key."""
    if key in SETTINGS:
        return SETTINGS[key]
    bare = {name.rpartition(".")[2]: name for name in reversed(SETTINGS)}
    near = difflib.get_close_matches(key, [*SETTINGS, *bare], n=1, cutoff=0.5)
    hint = f"did you mean {bare.get(near[0], near[0])}?" if near else "--help lists them all"
    raise ConfigError(f"{key if key and key.isprintable() else repr(key)}: unknown setting; {hint}")


SECTIONS: dict[str, Any] = {k: t for k, t in get_type_hints(Config).items() if dataclasses.is_dataclass(t)}
"""Dataclass of every section, by its name."""


def _all_settings(cls: Any, prefix: str = "", all_may_change: bool = False) -> Iterator[Setting]:
    """Those of the tree or of one section, in order, but those of no section first."""
    types, inner = get_type_hints(cls, include_extras=True), []
    for name, field in cls.__pydantic_fields__.items():
        may_change = all_may_change or "may_change" in (field.json_schema_extra or {})
        if cls is Config and name in SECTIONS:
            inner.append(_all_settings(SECTIONS[name], f"{name}.", may_change))
        else:
            yield Setting(f"{prefix}{name}", " ".join(field.description.split()), may_change, types[name])
    yield from chain.from_iterable(inner)


SETTINGS: dict[str, Setting] = {setting.key: setting for setting in _all_settings(Config)}
"""Every setting by its dotted key: those of no section first."""
