"""The command `capo plan`: predicts memory and time of a run, or recommends settings for a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from textwrap import indent

import capo_fast.runtime.extras  # noqa: F401  first: its errors are clearer than those of the imports below
from capo_fast.command import run_command
from capo_fast.config.arguments import Flags, note_embedded, read_arguments
from capo_fast.config.load import DEFAULT_FILE, build_config, read_file
from capo_fast.config.rules import PARTS, check_parts
from capo_fast.config.schema import Config, with_merging
from capo_fast.errors import ConfigError
from capo_fast.plan.hardware import NVIDIA, find_hardware
from capo_fast.plan.job import TYPICAL_PROMPT, Job, Lengths, fewest_hosts
from capo_fast.plan.memory import room
from capo_fast.plan.recommend import kept, recommend, settings
from capo_fast.plan.shapes import find_shape
from capo_fast.plan.text import changes_table, plan_text
from capo_fast.terminal import printable

USAGE = """\
Predicts the memory of each device and the time of a step, and the settings to lower if a run does not fit. Nothing is
started and no weights are read: it needs only a model's config.json, or the name of a published model. All other
arguments are those of `capo train`, whose --help lists the settings.

With --model it recommends settings instead, as a file for `capo train --config`."""


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own arguments, and those of `capo train`. Raises ConfigError."""
    parser = Flags("capo plan", description=USAGE, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False)
    parser.add_argument("--gpus", type=positive, default=1, help="devices of the job, ranks on a CPU (default: 1)")
    parser.add_argument("--nodes", type=positive, help="hosts of the job; default: the fewest with equal shares")
    parser.add_argument("--device", default="h100", help=f"{', '.join(NVIDIA)} or cpu, this machine (default: h100)")
    parser.add_argument("--prompt", type=positive, help=f"mean tokens of a prompt (default: at most {TYPICAL_PROMPT})")
    parser.add_argument("--response", type=positive, help="mean tokens of a response (default: half the longest)")
    parser.add_argument("--critique", type=positive, help="mean tokens of a critique (default: half the longest)")
    parser.add_argument("--model", help="recommend settings for this model")
    parser.add_argument("--context", type=positive, help="of --model: tokens of prompt and answer (default: 4096)")
    options, rest = parser.parse_known_args(argv)
    check_together(options, rest)
    return options, rest


SHORTEST = 128
"""Tokens of the shortest context with recommended settings."""


def check_together(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raises ConfigError for flags that have no effect together."""
    own = [f"--{name}" for name in ("prompt", "response", "critique") if getattr(options, name) is not None]
    others = [word for word in rest if word.startswith("--") and word.partition("=")[0] != "--algorithm"]
    if options.model and (unused := [*own, *others]):
        raise ConfigError(
            f"--model: found {unused[0]} with it, wanted only --algorithm, --context, --gpus, --nodes and --device: "
            "all other settings are recommended"
        )
    if options.context and not options.model:
        raise ConfigError("--context: wanted --model with it; a run's own context is engine.max_model_len")
    if options.context and options.context < SHORTEST:
        raise ConfigError(f"--context: found {options.context}, wanted at least {SHORTEST}")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted integer > 0")
    return int(text)


def plan(argv: Sequence[str]) -> int:
    """Print the plan. Returns 0 if the run fits, else 1."""
    options, rest = arguments(argv)
    hardware = find_hardware(options.device)
    hosts = options.nodes or fewest_hosts(options.gpus, hardware.per_host)
    if options.model:
        shape = find_shape(options.model, "--model")
        _, given = read_arguments(rest)
        job, changes = recommend(shape, options.context or 4096, hardware, options.gpus, hosts, given)
        tables = [changes_table(changes), plan_text(job)] if changes else [plan_text(job)]
        print(f"# for capo train --config FILE --data.path ...; the defaults hold for the rest: {kept(job)}")
        print(printable(settings(job)))
        print(as_comments(printable("\n".join(tables))), end="")
    else:
        job = job_of(options, rest, hosts)
        print(printable(plan_text(job)), end="")
    return int(room(job) < 0)


def as_comments(text: str) -> str:
    """The lines as comments of YAML, so that the whole output is a file of settings."""
    return indent(text, "# ", lambda line: not line.isspace())


def job_of(options: argparse.Namespace, rest: Sequence[str], hosts: int) -> Job:
    """The job of a run's settings."""
    hardware = find_hardware(options.device)
    config = with_merging(settings_of(rest), on_cpu=hardware.on_cpu)
    note_embedded(rest, config, ["rollout.max_tokens", "engine.max_model_len"])
    shape = find_shape(config.model.path)
    critic = find_shape(str(config.critic.path), "critic.path") if config.serves_critic else None
    return Job(config, shape, hardware, options.gpus, hosts, lengths_of(options, config), critic)


def lengths_of(options: argparse.Namespace, config: Config) -> Lengths:
    """The mean lengths of a step. Raises ConfigError if one is longer than the settings allow."""
    room = config.engine.max_model_len - config.rollout.max_tokens
    longest = {"prompt": room, "response": config.rollout.max_tokens, "critique": config.critic.max_tokens}
    for name, most in longest.items():
        if (found := getattr(options, name)) and found > most:
            raise ConfigError(f"--{name}: found {found}, wanted at most {most}, by the run's settings")
    return Lengths(
        options.prompt or min(TYPICAL_PROMPT, room),
        options.response or -(-config.rollout.max_tokens // 2),
        options.critique or -(-config.critic.max_tokens // 2),
    )


NOT_READ = ("data", "server", "endpoint", "patience")
"""Parts of a run that do not affect a plan: they may be missing."""


def settings_of(argv: Sequence[str]) -> Config:
    """The configuration of a run's arguments. Raises ConfigError."""
    files, given = read_arguments(argv)
    config = build_config(*map(read_file, files or [DEFAULT_FILE]), given)
    return check_parts(config, [part for name, part in PARTS.items() if name not in NOT_READ and part.used(config)])


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 if the run fits, 1 if not, 2 for wrong settings."""
    return run_command(lambda: plan(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
