"""The text of `--help` (`usage`) and the tables of the documentation (`markdown`).

They list every setting with its type and bounds, its text, the paper's value and the embedded default's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

from capo_fast.config.load import DEFAULT_FILE, build_config, by_key, read_algorithm, read_file
from capo_fast.config.schema import Config
from capo_fast.config.settings import SETTINGS, Setting, schema_of
from capo_fast.config.sft import SftConfig
from capo_fast.markdown import markdown_table

WIDTH = 110

INTRODUCTION = """\
usage: capo train [--nproc N] [--config FILE ...] [--section.key VALUE ...]

Trains a policy with CAPO. With no arguments it trains the embedded default, tiny.yaml, on a CPU in minutes.

Settings come in layers; a later layer overrides earlier ones key by key:
  1. the defaults below, which are the paper's CAPO set-up where the paper states one;
  2. YAML files, in the order given: --config FILE ..., else the packaged tiny.yaml; keys nested by section,
     dotted, or both;
  3. the command line: --section.key VALUE or --section.key=VALUE, names in full.
The last layer that names an algorithm selects it. The algorithm's own keys, listed below, are applied just
before the other keys of that layer.
Pairs are written 0.9,0.95. "none" clears a setting if its type allows it. pkg://package/file is a
packaged file."""


SFT_INTRODUCTION = """\
usage: capo sft [--nproc N] [--config FILE ...] --model.path DIR --data.path FILE [--section.key VALUE ...]

Fine-tunes a model on conversations, with the loss only on the assistant's answers, or (--task critic) a
critic on solutions whose wrong steps are labelled. Checkpoints, resume, metrics and model/ are those of
`capo train`. The defaults of batch and learning rate are the paper's for its base models.

Settings come in layers; a later layer overrides earlier ones key by key: the defaults, YAML files in the
order given, the command line. Pairs are written 0.9,0.95. "none" clears a setting whose type allows it.
pkg://package/file is a packaged file."""


def usage() -> str:
    """The whole help text, at most `WIDTH` columns wide."""
    lines = [INTRODUCTION, "", "algorithms and their keys:", *_algorithms()]
    lines += ["", "settings, [default] or [default; tiny.yaml: value in tiny.yaml]:"]
    lines += ["", "  --nproc N  number of ranks to start on this machine", "  --config FILE ..."]
    for section, settings in groupby(SETTINGS.values(), _section):
        lines += ["", section] if section else [""]
        for setting in settings:
            lines += _entry(setting)
    return "\n".join(lines)


def markdown() -> str:
    """A table per section of the settings, under a second-level heading."""
    parts = []
    for section, settings in groupby(SETTINGS.values(), _section):
        table = markdown_table(["Setting", "Type", "Default", "tiny.yaml", ""], [*map(_row, settings)])
        parts.append(f"## {section or 'General'}\n\n{table}")
    return "\n".join(parts)


def sft_usage() -> str:
    """The help text of `capo sft`."""
    lines = [SFT_INTRODUCTION, "", "settings, [default]:"]
    lines += ["", "  --nproc N  number of ranks to start on this machine", "  --config FILE ..."]
    for section, settings in _sft_sections():
        lines += ["", section] if section else [""]
        for setting, value in settings:
            lines += _wrapped(f"--{setting.key}  {setting.wanted}  [{value}]", 2, 8) + _wrapped(setting.text, 6, 6)
    return "\n".join(lines)


def sft_markdown() -> str:
    """The tables of `capo sft`, like `markdown`."""
    parts = []
    for section, settings in _sft_sections():
        rows = [[f"`{each.key}`", _kinds(each), f"`{value}`", _cell(each)] for each, value in settings]
        parts.append(f"### {section or 'General'}\n\n{markdown_table(['Setting', 'Type', 'Default', ''], rows)}")
    return "\n".join(parts)


def _sft_sections() -> Iterator[tuple[str, list[tuple[Setting, str]]]]:
    """Each section of `capo sft` with its settings and their defaults."""
    values = by_key(SftConfig())
    for section, settings in groupby(schema_of(SftConfig).settings.values(), _section):
        yield section, [(each, shown_value(values[each.key])) for each in settings]


def _section(setting: Setting) -> str:
    return setting.key.rpartition(".")[0]


def _entry(setting: Setting) -> list[str]:
    paper, tiny = _defaults(setting.key)
    other = "" if tiny == paper else f"; tiny.yaml: {tiny}"
    lines = _wrapped(f"--{setting.key}  {setting.wanted}  [{paper}{other}]", 2, 8)
    return [*lines, *_wrapped(setting.text, 6, 6)]


def _row(setting: Setting) -> list[str]:
    paper, tiny = (f"`{value}`" for value in _defaults(setting.key))
    return [f"`{setting.key}`", _kinds(setting), paper, "" if tiny == paper else tiny, _cell(setting)]


def _kinds(setting: Setting) -> str:
    return " or ".join(f"`{word}`" for word in setting.wanted.split(" | "))


def _cell(setting: Setting) -> str:
    return setting.text + (" *May change on a resume.*" if setting.may_change else "")


def _defaults(key: str) -> tuple[str, str]:
    """The paper's value and tiny.yaml's."""
    paper, tiny = _values()
    return shown_value(paper[key]), shown_value(tiny[key])


@cache
def _values() -> tuple[dict[str, Any], dict[str, Any]]:
    configs = Config(), build_config(read_file(DEFAULT_FILE))
    paper, tiny = map(by_key, configs)
    return paper, tiny


def _algorithms() -> list[str]:
    lines = []
    for name in SETTINGS["algorithm"].schema["enum"]:
        settings = "  ".join(f"{key}={shown_value(value)}" for key, value in read_algorithm(name).items())
        lines += _wrapped(f"{name:<11} {settings}", 2, 14)
    return lines


def shown_value(value: Any) -> str:
    """A setting's value as on a command line."""
    match value:
        case float():
            return f"{value:g}"
        case None | bool():
            return {None: "none", True: "true", False: "false"}[value]
        case tuple():
            return ",".join(map(str, value))
    return str(value) or '""'


def _wrapped(text: str, first: int, rest: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
