"""Step-labelled sets outside the world, and a critic that is fine-tuned on them: `capo sft --task critic`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bench.words import base
from bench.words.places import Places
from capo_fast.data import read_rows
from capo_fast.evaluation.labelled import DATA
from capo_fast.evaluation.questions import SUFFIXES, drawn

PROMPTS = "pkg://capo_fast.credit/prompts"
OUTSIDE = {
    "mrgsm8k": None,
    "mathcheck": None,
    "bigbench_mistake": "multistep_arithmetic",
    "processbench": "gsm8k",
}
"""Sets outside the world, and the subset used."""
SETTINGS = base.SETTINGS | {
    "task": "critic",
    "data.critic_prompt": f"{PROMPTS}/words.txt",
    "data.max_tokens": 640,
    "data.overlong": "drop",
    "train.steps": 60,
    "train.lr": 5e-4,
    "train.warmup_steps": 6,
    "checkpoint.every": 20,
}
"""Settings of `capo sft` other than files."""


def tune_critic(places: Places, limit: int, data_dir: Path) -> None:
    """Fine-tune the base on the labels of all sets, without the problems of the rows that `critics` scores."""
    sets = [rows for _, rows in outside_rows(data_dir)]
    files = {"data.path": places.labelled / "all.jsonl", "eval.path": places.labelled / "tests.jsonl"}
    write_rows(files["data.path"], chain(*sets))
    write_rows(files["eval.path"], chain(*(drawn(rows, limit) for rows in sets)))
    settings = files | {"model.path": places.base, "run.dir": places.on_labels} | SETTINGS
    sys.exit(subprocess.run([sys.executable, "-m", "capo_fast.cli", *base.arguments("sft", settings)]).returncode)


def outside_files(places: Places, data_dir: Path | None) -> Iterator[Path]:
    """The sets of OUTSIDE in the folder, each written to a file of its subset."""
    for name, rows in outside_rows(data_dir):
        path = places.labelled / f"{name}.jsonl"
        write_rows(path, rows)
        yield path


def outside_rows(data_dir: Path | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and rows of each set of OUTSIDE in the folder."""
    for name, subset in OUTSIDE.items() if data_dir is not None else ():
        sources = [path for suffix in SUFFIXES if (path := data_dir / f"{DATA[name]}{suffix}").exists()]
        if sources:
            yield name, [row for _, row in read_rows(str(sources[0])) if subset in (None, row["subset"])]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
