"""Parses a document's commands with the parsers of their programs. Runs nothing."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from unittest import mock

from project.documents import ROOT
from torch.distributed.run import get_args_parser

from capo_fast.cli import COMMANDS, ON_RANKS, split_ranks
from capo_fast.config.arguments import load_config, load_sft_config, read_arguments
from capo_fast.config.settings import SETTINGS, schema_of
from capo_fast.config.sft import SftConfig

OURS = {"capo_fast", "bench", "tests", "docs"}
PROGRAM = re.compile(
    r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?P<name>capo|python|bash|make|pip|torchrun|pytest)(?= )"
)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each line that begins with a known program, without prompt, variables, comments and `...`."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if found := PROGRAM.match(line):
            words = shlex.split(line[found.end() :], comments=True)
            yield [found["name"], *(word for word in words if word != "...")]


def check(program: str, *words: str) -> None:
    """Raises ConfigError, AssertionError or SystemExit for arguments that the program rejects."""
    match program, *words:
        case "capo", command, *rest:
            check_capo(command, rest)
        case ("python", "-m", "pytest", *rest) | ("pytest", *rest):
            assert all((ROOT / word).exists() for word in rest if "/" in word), rest
        case "python", "-m", module, *rest if rest and module.partition(".")[0] in OURS:
            parse(module, rest)
        case (("python" | "bash"), script, *_) if script.endswith((".py", ".sh")):
            assert Path(script).is_file(), script
        case "torchrun", *rest:
            options = get_args_parser().parse_args(rest)
            [command] = [name for name, (module, _) in COMMANDS.items() if module == options.training_script]
            check_capo(command, options.training_script_args)
        case "make", *rest:
            check_make(rest)
        case "pip", "install", *rest:
            check_pip(rest)


def check_in_text(program: str, *words: str) -> None:
    """Like `check`, for a command in running text: only its flags, because the values are placeholders."""
    match program, *words:
        case "capo", ("train" | "check"), *_:
            known = set(SETTINGS)
        case "capo", "sft", *_:
            known = set(schema_of(SftConfig).settings)
        case "capo", command, *_:
            known = set(SETTINGS) | options(COMMANDS[command][0])
        case "python", "-m", module, *_ if module.partition(".")[0] in OURS:
            known = options(module)
        case _:
            return check(program, *words)
    flags = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    assert flags <= known | {"config", "nproc", "help"}, flags - known


def options(module: str) -> set[str]:
    parser = parser_of(module)
    return set() if parser is None else {flag.removeprefix("--") for flag in parser._option_string_actions}


def check_capo(command: str, words: list[str]) -> None:
    assert command in COMMANDS or command.startswith("-"), f"capo {command}"
    rest = split_ranks(words)[1] if command in (*ON_RANKS, "check") else words
    if {"-h", "--help"} & {command, *rest}:
        return
    if command in ("train", "check"):
        load_config(rest)
    elif command == "sft":
        load_sft_config(rest)
    else:
        parse(COMMANDS[command][0], rest)


def parse(module: str, words: list[str]) -> None:
    """Parse the words with the module's own flags, and the rest as settings."""
    parser = parser_of(module)
    if parser is not None:
        _, rest = parser.parse_known_args(words)
        read_arguments(rest)


class Caught(Exception):
    """Carries the parser whose `parse_known_args` was called."""


@cache
def parser_of(module: str) -> argparse.ArgumentParser | None:
    """The argument parser of the module's `main`; None if it has no flags."""
    loaded = import_module(module if has_main(module) else f"{module}.__main__")
    if "parse_" not in inspect.getsource(loaded):
        return None

    def caught(self: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(self)

    arguments = [[]] if inspect.signature(loaded.main).parameters else []
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", caught), mock.patch("sys.argv", [module]):
        try:
            loaded.main(*arguments)
        except Caught as found:
            return found.args[0]
    raise AssertionError(f"{module} parses nothing")


def has_main(module: str) -> bool:
    return (ROOT / f"{module.replace('.', '/')}.py").exists()


def check_make(words: list[str]) -> None:
    rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    targets = [word for word in words if "=" not in word]
    assert set(targets) <= set(rules), targets
    if targets == ["train"]:
        load_config(shlex.split(variables.get("ARGS", "")))


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        named = re.match(r"\.\[([\w,]+)\]$", word)
        assert named is None or set(named[1].split(",")) <= extras.keys(), word
        assert not word.startswith("requirements/") or (ROOT / word).is_file(), word
