"""Resolves the paths of the configuration: on disk, or inside an installed package."""

from __future__ import annotations

import argparse
import os
import re
from importlib import resources
from pathlib import Path

from capo_fast.config.hub import hub_id
from capo_fast.errors import ConfigError

PACKAGED = "pkg://"


def expand_home(text: str) -> str:
    """The path, or hub id, with `~` expanded. Raises ValueError for text that is probably not meant as a name.

    For example `$HOME` in a settings file, which no shell expands, would become a folder of that name.
    """
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(f"there is no user {path.split('/')[0][1:]!r}")
    if "\0" in path:
        raise ValueError("it contains a NUL character")
    if variable := re.search(r"(?:^|/)(\$\{?\w+\}?)", path):
        raise ValueError(f"{variable[1]} is not expanded here, wanted the folder itself, or ~ for the home folder")
    return path


def path_argument(text: str) -> Path:
    """The type of an argparse argument that is a path, with `~` expanded."""
    try:
        return Path(expand_home(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}: {error}") from None


def resolve_path(text: str) -> Path:
    """The file or folder that `text` names.

    `pkg://package.name/relative/file` is a file shipped in a package, and must exist; anything else is a path on disk,
    with `~` expanded, which need not exist yet.
    """
    if text.startswith(PACKAGED):
        return _packaged(text)
    try:
        return Path(expand_home(text))
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None


def resolve_model(text: str, key: str = "model.path") -> str:
    """The folder of a model, or a hub id: text that is not a folder and does not look like a path.

    key: the setting that names it. Raises ConfigError.
    """
    path = resolve_path(text)
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ConfigError(f"{key}: {text}: a file, wanted a model's folder or a hub id")
    if path.is_absolute() or text.startswith(".") or text.count("/") > 1:
        raise ConfigError(f"{key}: {text}: no such model folder")
    return hub_id(text, key)


def _packaged(text: str) -> Path:
    package, _, inside = text.removeprefix(PACKAGED).partition("/")
    if not package or not inside:
        raise ConfigError(f"{text}: wanted pkg://package.name/relative/file")
    try:
        path = Path(str(resources.files(package) / inside))
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"{text}: can't open package {package}: {error}") from None
    if not path.exists():
        raise ConfigError(f"{text}: package {package} has no {inside}")
    return path
