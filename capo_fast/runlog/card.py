"""The cards of a run: README.md of `model/` and `adapter/`, with the front matter that the Hugging Face hub reads.

Nothing in a card depends on the machine or the clock: files and folders appear by name and digest. A run that is killed
and resumed has the same card. The text is card.md, a Jinja2 template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from capo_fast.config.core_yaml import CoreDumper
from capo_fast.config.load import by_key, config_as_dict
from capo_fast.config.paths import PACKAGED, resolve_path
from capo_fast.config.schema import Config
from capo_fast.config.settings import schema_of
from capo_fast.config.sft import SftConfig
from capo_fast.markdown import markdown_table
from capo_fast.runlog.card_kinds import Kind, fine_tuned, trained
from capo_fast.runlog.inputs import Digests, input_paths, model_folder
from capo_fast.runlog.progress import Progress
from capo_fast.runtime.digest import bytes_digest
from capo_fast.runtime.software import versions

TEMPLATE = Path(__file__).with_name("card.md")


@dataclass(frozen=True)
class Origin:
    """The inputs of a run, read when it starts: at its end the files may have moved."""

    base: Base
    table: str
    """Its inputs with their digests."""


@dataclass(frozen=True)
class Base:
    """The model that a run starts from, described by its own card."""

    name: str
    """Hub id, or name of the folder."""
    hub_id: str | None
    """None if neither the setting nor the folder's card names one."""
    license: str
    """`unknown` if its card has none."""


def origin_of(config: Config | SftConfig, digests: Digests) -> Origin:
    """digests: of the run's inputs."""
    paths = input_paths(config)
    rows = [[f"`{key}`", _name(paths[key]), f"`{_joined(files)}`"] for key, files in sorted(digests.items())]
    return Origin(base_of(config.model.path), markdown_table(["setting", "name", "digest"], rows))


def base_of(path: str) -> Base:
    """path: `model.path`."""
    card = _front_matter_of(model_folder(path) / "README.md")
    hub_id = card.get("base_model") if resolve_path(path).is_dir() else path
    return Base(_name(path), hub_id if isinstance(hub_id, str) else None, str(card.get("license") or "unknown"))


def _front_matter_of(card: Path) -> Mapping[str, Any]:
    """The front matter of another author's card; empty if it is missing or malformed."""
    from huggingface_hub import metadata_load  # slow to import

    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def _name(path: str) -> str:
    """A hub id or a packaged file in full; of a path only the last part, as the rest depends on the machine."""
    return path if path.startswith(PACKAGED) or not resolve_path(path).exists() else resolve_path(path).name


def _joined(files: Mapping[str, str]) -> str:
    """The digest of one file, or of several."""
    if len(files) == 1:
        return next(iter(files.values()))
    return bytes_digest(f"{name} {digest}\n".encode() for name, digest in sorted(files.items()))


def model_cards(config: Config | SftConfig, progress: Progress, origin: Origin, repeated: int = 0) -> dict[str, str]:
    """The text of README.md by folder of the run: `model`, and under LoRA `adapter`.

    repeated: held-out problems that are training problems as well.
    """
    from jinja2 import Environment, StrictUndefined  # only the end of a run needs it

    kind = fine_tuned(config) if isinstance(config, SftConfig) else trained(config, repeated)
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(
        TEMPLATE.read_text(encoding="utf-8"),
        {"config": config, "kind": kind, "origin": origin, "steps": progress.step, "curve": curve(progress, kind)}
        | {"chat": example_chat(config.data.system_prompt), "settings": chosen_settings(config)}
        | {"versions": software(config, kind)},
    )
    cards = {}
    for folder, title in titles(origin.base.name, config.lora.rank > 0).items():
        is_adapter = folder == "adapter"
        head = front_matter(is_adapter, origin.base, kind)
        cards[folder] = template.render(title=title, is_adapter=is_adapter, front_matter=head) + "\n"
    return cards


def titles(base: str, lora: bool) -> dict[str, str]:
    """Titles of the cards by folder."""
    if not lora:
        return {"model": f"A model trained from {base}"}
    return {"model": f"{base} with a trained LoRA adapter merged in", "adapter": f"A LoRA adapter of {base}"}


def front_matter(is_adapter: bool, base: Base, kind: Kind) -> str:
    relation = "adapter" if is_adapter else "finetune"
    named = {"base_model": base.hub_id, "base_model_relation": relation} if base.hub_id else {}
    library = {"library_name": "peft" if is_adapter else "transformers", "pipeline_tag": "text-generation"}
    tags = ["capo_fast", *kind.tags, *(["lora"] if is_adapter else [])]
    return yaml.dump({"license": base.license, **named, **library, "tags": tags}, sort_keys=False)


def example_chat(system_prompt: str | None) -> str:
    """Messages as the policy was trained on them, as Python."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return json.dumps([*system, {"role": "user", "content": "1+1=?"}], ensure_ascii=False)


def curve(progress: Progress, kind: Kind) -> str:
    """A table of the evaluations; empty without any."""
    steps = sorted(progress.evaluations, key=int)
    rows = [[step, *(_shown(progress.evaluations[step][key]) for key in kind.columns)] for step in steps]
    head = ["step", *kind.columns.values()]
    return markdown_table(head, rows, right=head).rstrip() if rows else ""


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if math.isfinite(value) else "-"


def chosen_settings(config: Config | SftConfig) -> str:
    """YAML of the settings that differ from the default, without paths and settings that do not affect the result."""
    values, defaults, nested = by_key(config), by_key(type(config)()), config_as_dict(config)
    chosen = {
        key: reduce(getitem, key.split("."), nested)
        for key, setting in schema_of(type(config)).settings.items()
        if values[key] != defaults[key] and not setting.may_change and not setting.is_path
    }
    return yaml.dump(chosen, Dumper=CoreDumper, sort_keys=False)


def software(config: Config | SftConfig, kind: Kind) -> str:
    packages = ("capo-fast", "torch", "transformers", *kind.packages, *(["peft"] if config.lora.rank > 0 else []))
    return ", ".join(f"{name} {version}" for name, version in versions(packages).items())
