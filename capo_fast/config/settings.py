"""Every setting by its dotted key: parsing of its values, and its bounds and docstring as text."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Annotated, Any, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from capo_fast.config.core_yaml import CoreLoader
from capo_fast.config.other_names import OTHER_NAMES
from capo_fast.config.schema import Config
from capo_fast.config.types import WhereUsed
from capo_fast.errors import ConfigError

SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
WORDS = {
    **{"integer": "integer", "number": "number", "string": "text", "boolean": "true | false", "null": "none"},
    "object": "mapping {name: value}",
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
    """Its type with bounds."""

    @cached_property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the type, with the bounds of a run that uses the setting."""
        return self._used.json_schema()

    @property
    def wanted(self) -> str:
        """The type and its bounds as text."""
        return in_words(self.schema)

    @property
    def is_path(self) -> bool:
        return any(each.get("format") == "path" for each in self.schema.get("anyOf", [self.schema]))

    def convert(self, value: Any) -> Any:
        """The value converted to the setting's type; text is parsed as on a command line. Raises ConfigError."""
        try:
            read = self._from_text(value) if isinstance(value, str) else value
            items = read if isinstance(read, list | tuple) else [read]
            if not self._takes("boolean") and any(isinstance(item, bool) for item in items):  # pydantic takes true as 1
                raise TypeError
            return self._adapter.validate_python(read)
        except (ValidationError, TypeError, OverflowError, yaml.YAMLError) as error:
            raise ConfigError(f"{self.key}: found {shown(value)}{self._cause(error)}") from None

    def check_used(self, value: Any) -> None:
        """Raises ConfigError if the value breaks a bound that applies only to runs that use the setting."""
        try:
            self._used.validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{self.key}: found {shown(value)}{self._cause(error)}") from None

    def _cause(self, error: Exception) -> str:
        found = error.errors() if isinstance(error, ValidationError) else []
        causes = [each["msg"] for each in found if each["type"] == "path"]
        return f": {causes[0]}" if causes else f", wanted {self.wanted}"

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.type, config=ConfigDict(allow_inf_nan=False))

    @cached_property
    def _used(self) -> TypeAdapter[Any]:
        marks = (mark for mark in getattr(self.type, "__metadata__", ()) if isinstance(mark, WhereUsed))
        bounds = [bound for mark in marks for bound in mark.bounds]
        strict: Any = Annotated[(self.type, *bounds)] if bounds else self.type
        return TypeAdapter(strict, config=ConfigDict(allow_inf_nan=False))

    def _from_text(self, text: str) -> Any:
        if self._takes("null") and text.lower() in ("none", "null"):
            return None
        if self._takes("object"):
            return yaml.load(text, Loader=CoreLoader)
        return [item.strip() for item in text.split(",")] if self._takes("array") else text

    def _takes(self, kind: str) -> bool:
        return any(each.get("type") == kind for each in self.schema.get("anyOf", [self.schema]))


def in_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema as text.

    >>> in_words({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"enum": ["all", "none"]}]})
    'integer > 0 | all | none'
    """
    match schema:
        case {"anyOf": kinds}:
            return " | ".join(map(in_words, kinds))
        case {"enum": words}:
            return " | ".join(words)
        case {"const": word}:
            return str(word)
        case {"prefixItems": items}:
            return ",".join(map(in_words, items))
        case {"items": item}:
            return f"{in_words(item)},..."
    given = {name: bound for name, bound in schema.items() if name in SIGNS}
    if "exclusiveMinimum" in given:
        given.pop("minimum", None)  # the looser bound
    bounds = " and ".join(f"{sign} {given[name]:g}" for name, sign in SIGNS.items() if name in given)
    return f"{WORDS[schema['type']]} {bounds}".rstrip()


def shown(value: Any) -> str:
    """A value as text for an error."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    return reprlib.repr(value)


@dataclass(frozen=True)
class Schema:
    """The settings of one kind of run: `Config`, or `SftConfig`."""

    sections: dict[str, Any]
    """Dataclass of every section, by its dotted name; `critic.server` is inside `critic`."""
    settings: dict[str, Setting]
    """Every setting by its dotted key; settings without a section come first."""

    def find(self, key: str) -> Setting:
        """The setting of a key. Raises ConfigError that names the nearest key, also for a bare field name."""
        if key in self.settings:
            return self.settings[key]
        near = self._nearest(key)
        hint = f"did you mean {near}?" if near else "--help lists them all"
        raise ConfigError(f"{key if key and key.isprintable() else repr(key)}: unknown setting; {hint}")

    def _nearest(self, key: str) -> str | None:
        """The setting that another trainer calls so, with the most similar spelling, with the same end, or with the
        key's words in its text."""
        others = {other: name for other, name in OTHER_NAMES.items() if name in self.settings}
        if key in OTHER_NAMES:
            return others.get(key)
        own = {name.rpartition(".")[2]: name for name in reversed(self.settings)} | {n: n for n in self.settings}
        names, parts = own | others, key.split(".")
        ends = [".".join(parts[place:]) for place in range(1, len(parts))]
        words = parts[-1].replace("_", " ").lower()
        near = [
            *difflib.get_close_matches(key, names, n=1, cutoff=0.8),
            *(end for end in ends if end in self.settings or end in others),
            *(name for name, setting in self.settings.items() if " " in words and words in setting.text.lower()),
            *difflib.get_close_matches(key, own, n=1, cutoff=0.75),
        ]
        return names[near[0]] if near else None


def schema_of(kind: Any) -> Schema:
    """The settings of a configuration's class, except those in its `UNUSED`."""
    return _schema(kind)


@cache
def _schema(kind: Any) -> Schema:
    sections = dict(_all_sections(kind))
    unused = getattr(kind, "UNUSED", ())
    found = {each.key: each for each in _all_settings(kind, sections) if each.key not in unused}
    return Schema(sections, found)


def sections_in(cls: Any) -> dict[str, Any]:
    """The dataclasses directly inside a configuration's class, or a section's, by field name."""
    return {name: inner for name, inner in get_type_hints(cls).items() if dataclasses.is_dataclass(inner)}


def _all_sections(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in sections_in(cls).items():
        yield f"{prefix}{name}", inner
        yield from _all_sections(inner, f"{prefix}{name}.")


def _all_settings(cls: Any, sections: Mapping[str, Any], prefix: str = "", may: bool = False) -> Iterator[Setting]:
    """The settings of the tree or one section, in order, those without a section first. may: all may change on a
    resume."""
    types, inner = get_type_hints(cls, include_extras=True), []
    for name, field in cls.__pydantic_fields__.items():
        may_change = may or "may_change" in (field.json_schema_extra or {})
        if (key := f"{prefix}{name}") in sections:
            inner.append(_all_settings(sections[key], sections, f"{key}.", may_change))
        else:
            yield Setting(key, _text(cls, name), may_change, types[name])
    yield from chain.from_iterable(inner)


def _text(cls: Any, name: str) -> str:
    """A field's docstring on one line. Pydantic reads it only in the class that declares the field."""
    declared = (base.__dict__.get("__pydantic_fields__", {}).get(name) for base in cls.__mro__)
    return " ".join(next(each.description for each in declared if each and each.description).split())


SECTIONS = schema_of(Config).sections
SETTINGS = schema_of(Config).settings
