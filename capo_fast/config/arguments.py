"""The command line of a run: `--config FILE ...`, `--section.key VALUE` and `--help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any, NoReturn

from capo_fast.config.help import sft_usage, shown_value, usage
from capo_fast.config.load import DEFAULT_FILE, build_config, build_kind, read_file
from capo_fast.config.rules import validate
from capo_fast.config.schema import Config
from capo_fast.config.settings import schema_of
from capo_fast.config.sft import SftConfig, validate_sft
from capo_fast.errors import ConfigError
from capo_fast.terminal import print_line


class Flags(argparse.ArgumentParser):
    """A parser of a command's own flags. Errors are raised as ConfigError, one line each."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def load_config(argv: Sequence[str]) -> Config:
    """The validated configuration of a command line; `--help` prints the settings and exits."""
    if any(word in ("-h", "--help") for word in argv):
        print(usage())
        sys.exit(0)
    files, given = read_arguments(argv)
    return validate(build_config(*map(read_file, files or [DEFAULT_FILE]), given))


EMBEDDED = ("data.path", "eval.path", "data.system_prompt", "rollout.max_tokens", "train.lr", "critic.prompt")
"""Settings of `DEFAULT_FILE` that rarely suit another model or other data."""
ADVICE = "start from a file of configs/ (configs/README.md) or of capo plan --model"


def note_embedded(argv: Sequence[str], config: Config, keys: Collection[str] = EMBEDDED) -> None:
    """Print on rank 0 which of these settings a run of an own model or own data has from `DEFAULT_FILE`."""
    files, given = read_arguments(argv)
    kept = [key for key in keys if key not in given and (config.has_critic or not key.startswith("critic."))]
    default = build_config(read_file(DEFAULT_FILE))
    own = any(attrgetter(key)(config) != attrgetter(key)(default) for key in ("model.path", "data.path"))
    if own and kept and not files and os.environ.get("RANK", "0") == "0":
        values = ", ".join(f"{key} {shown_value(attrgetter(key)(config))}" for key in kept)
        print_line("note", f"without --config the settings are those of the embedded task: {values}; {ADVICE}")


def load_sft_config(argv: Sequence[str]) -> SftConfig:
    """`load_config` for `capo sft`, which has no default file."""
    if any(word in ("-h", "--help") for word in argv):
        print(sft_usage())
        sys.exit(0)
    files, given = read_arguments(argv, SftConfig)
    return validate_sft(build_kind(SftConfig, *(read_file(file, SftConfig) for file in files), given))


def read_arguments(argv: Sequence[str], kind: Any = Config) -> tuple[list[str], dict[str, Any]]:
    """The files of `--config`, in order, and the other arguments as a flat layer. Raises ConfigError."""
    files: list[str] = []
    layer: dict[str, Any] = {}
    for flag, values in _flags(argv):
        key = flag.removeprefix("--")
        setting = schema_of(kind).find(key) if key != "config" else None
        if not values:
            raise ConfigError(f"{flag}: needs a value: {flag} VALUE or {flag}=VALUE")
        if setting is None:
            files += values
        elif key in layer:
            raise ConfigError(f"{key}: given twice on the command line")
        elif len(values) > 1:
            raise _unexpected(values[1])
        else:
            layer[key] = setting.convert(values[0])
    return files, layer


def _flags(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Every flag with the words that follow it."""
    flags: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flags.append((flag, [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise _unexpected(word)
    return flags


def _unexpected(word: str) -> ConfigError:
    return ConfigError(f"{word}: unexpected argument; settings are given as --section.key value")
