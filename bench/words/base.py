"""The base of every run: the pretrained model, fine-tuned on the world's solutions and critiques.

Only its LoRA adapter is kept, in bfloat16. Merged into the pretrained model it gives the same base on any machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.evidence.report import cell
from bench.machine import about
from bench.words.measure import measure
from bench.words.places import SEED, Places
from capo_fast.runtime.digest import file_digest
from capo_fast.words.files import Sizes, write_files

NAME = "SmolLM2-135M-Instruct"
SETTINGS = {
    "seed": SEED,
    "policy.dtype": "float32",
    "lora.rank": 16,
    "lora.alpha": 32,
    "data.system_prompt": "null",
    "train.epochs": 1,
    "train.batch": 8,
    "train.lr": 1.5e-3,
    "train.betas": "0.9,0.95",
    "train.warmup_steps": 40,
    "train.micro_tokens": 2048,
    "checkpoint.every": 50,
}
"""Settings of `capo sft` other than files."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MARK = "adapter.sha256"
"""File in the merged model's folder with the digest of the adapter's weights."""


def tuning_command(places: Places) -> list[str]:
    """The command of the fine-tuning."""
    files = {"model.path": places.pretrained, "data.path": places.data / "sft.jsonl", "run.dir": tuned(places)}
    return [sys.executable, "-m", "capo_fast.cli", *arguments("sft", files | SETTINGS)]


def arguments(command: str, settings: Mapping[str, Any]) -> list[str]:
    return [command, *(f"--{key}={value}" for key, value in settings.items())]


def tuned(places: Places) -> Path:
    """The run folder of the fine-tuning."""
    return places.runs / "sft"


def make_base(places: Places, problems: int, data_dir: Path | None) -> None:
    """Make what is missing: the data, the adapter by fine-tuning, the merged model, and its figures."""
    check_pretrained(places)
    make_data(places)
    if not (places.adapter / WEIGHTS).exists():
        start, command = time.monotonic(), tuning_command(places)
        if status := subprocess.run(command).returncode:
            sys.exit(status)
        keep_adapter(tuned(places) / "adapter", places.adapter)
        made = {
            "command": command[1:],
            "minutes": (time.monotonic() - start) / 60,
            "about": about(torch.get_num_threads()),
        }
        write_json(places.results / "tuning.json", made)
    merge_base(places)
    if not (places.results / "base.json").exists():
        write_json(places.results / "base.json", measure(places, problems, data_dir))
    print(summary(json.loads((places.results / "base.json").read_text())))


def make_data(places: Places) -> None:
    if not places.data.exists():
        write_files(places.data, SEED, Sizes())


def keep_adapter(source: Path, out: Path) -> None:
    """Save an adapter in bfloat16 with the name of its base instead of a folder of this machine."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in load_file(source / WEIGHTS).items()}
    save_file(weights, out / WEIGHTS)
    config = json.loads((source / CONFIG).read_text())
    write_json(out / CONFIG, config | {"base_model_name_or_path": NAME})


def check_pretrained(places: Places) -> None:
    if not (places.pretrained / "config.json").exists():
        sys.exit(f"{places.pretrained} does not exist; make it with: capo fetch smollm2 --out {places.pretrained}")


def merge_base(places: Places) -> None:
    """Merge the adapter into the pretrained model, in float32, unless the merged model is of this adapter."""
    check_pretrained(places)
    if not (places.adapter / WEIGHTS).exists():
        sys.exit(f"{places.adapter} has no adapter; make it with: python -m bench.words base")
    digest, mark = file_digest(places.adapter / WEIGHTS), places.base / MARK
    if mark.exists() and mark.read_text() == digest:
        return
    partial = places.base.with_name(f".{places.base.name}.tmp")
    for folder in (partial, places.base):
        shutil.rmtree(folder, ignore_errors=True)
    save_merged(places, partial)
    (partial / MARK).write_text(digest)
    partial.rename(places.base)


def save_merged(places: Places, out: Path) -> None:
    # Both take seconds to import and are rarely needed.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(places.pretrained, dtype=torch.float32)
    PeftModel.from_pretrained(model, places.adapter).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(places.pretrained).save_pretrained(out)


def summary(base: Mapping[str, Any]) -> str:
    """The base's scores in one line."""
    solved, critic = base["solved"]["heldout"]["metrics"], base["critic"][0]
    f1 = critic["f1"] and critic["f1"]["value"]
    rates = [solved["avg@1"]["value"], solved["pass@1"]["value"], f1, critic["step_precision"], critic["step_recall"]]
    sampled, greedy, *found = (cell([rate]) for rate in rates)
    return f"held-out pass@1 {sampled} sampled, {greedy} greedy; F1, precision, recall of critiques {', '.join(found)}"


def write_json(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
