"""Exports the policy: `model/` for transformers and vLLM, `adapter/` for PEFT.

All files without their tensors are written once before the first step, and deleted: a run whose model can't be saved
fails before training.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError, cause_of
from capo_fast.policy.checkpoint import CheckpointError
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import adapter_files, adapter_weights, merged_weights, untied_names
from capo_fast.policy.model import DTYPES, Policy
from capo_fast.pretrained import GENERATION
from capo_fast.runtime.ranks import on_first_rank


def rehearse_export(learner: Learner, tokenizer: Any, folder: Path, config: Config) -> None:
    """Write the files of `export_policy`, without tensors, to a temporary folder inside `folder`. A collective.

    Raises ConfigError if the model, its adapter or its tokenizer can't be written.
    """
    on_first_rank(lambda: _rehearse(learner.policy, tokenizer, folder, config))


def _rehearse(policy: Policy, tokenizer: Any, folder: Path, config: Config) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
            _write_model(policy, {}, Path(temporary), config.checkpoint.export_dtype)
            tokenizer.save_pretrained(temporary)
            if config.lora.rank > 0:
                adapter_files(policy.model, {})
    except OSError as error:
        raise CheckpointError(f"{folder}: the model to be exported can't be written: {error}") from error
    except Exception as error:  # configs and tokenizers raise ValueError, TypeError, KeyError, tokenizers Exception
        where = f"model.path: {policy.model.name_or_path}"
        raise ConfigError(f"{where} could not be saved after training: {cause_of(error)}") from error


CARD = "README.md"


def export_policy(learner: Learner, tokenizer: Any, folder: Path, config: Config, cards: Mapping[str, str]) -> None:
    """Write the policy as `folder/model`, and under LoRA its adapter as `folder/adapter`. A collective.

    cards: text of the model card by folder, `model` and `adapter`. Raises CheckpointError.
    """
    export_model(learner, tokenizer, folder / "model", config.checkpoint.export_dtype, cards["model"])
    if config.lora.rank > 0:
        export_adapter(learner, tokenizer, folder / "adapter", cards["adapter"])


def export_model(learner: Learner, tokenizer: Any, folder: Path, dtype: str, card: str = "") -> None:
    """Write the policy as a folder that transformers and vLLM load (safetensors, config, tokenizer, card), an adapter
    merged into its base. A collective.

    Raises CheckpointError; an older export is kept until the new one is whole.
    """
    weights = {}
    for name, weight in merged_weights(learner.policy, DTYPES[dtype], untied_names(learner.policy.model)):
        if dist.get_rank() == 0:
            weights[name] = weight.cpu()
    _export(folder, lambda temporary: _write_model(learner.policy, weights, temporary, dtype), tokenizer, card)


def export_adapter(learner: Learner, tokenizer: Any, folder: Path, card: str = "") -> None:
    """Write the policy's LoRA adapter as a folder that PEFT and vLLM load, with the tokenizer and the card. A
    collective.

    Raises CheckpointError; an older export is kept until the new one is whole.
    """
    files = adapter_files(learner.policy.model, adapter_weights(learner.policy))

    def write(temporary: Path) -> None:
        for name, data in files.items():
            (temporary / name).write_bytes(data)

    _export(folder, write, tokenizer, card)


def _export(folder: Path, write: Callable[[Path], None], tokenizer: Any, card: str) -> None:
    """Rank 0 replaces the folder by one with the files of `write`, the tokenizer and the card. A collective. Raises
    CheckpointError."""

    def export() -> None:
        try:
            with _replacing_folder(folder) as temporary:
                write(temporary)
                tokenizer.save_pretrained(temporary)
                (temporary / CARD).write_text(card, encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} not written, the checkpoints kept: {error}") from error

    on_first_rank(export)


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that replaces `folder` when it is complete."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _write_model(policy: Policy, weights: dict[str, torch.Tensor], folder: Path, dtype: str) -> None:
    policy.model.save_pretrained(folder, state_dict=weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    if policy.generation_file is not None:
        (folder / GENERATION).write_bytes(policy.generation_file)
