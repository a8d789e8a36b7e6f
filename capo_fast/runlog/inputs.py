"""The inputs of a run by content: digests of the data, the models and the critic's prompt.

    {"data.path": {"": "5f0c..."}, "model.path": {"config.json": "77ab...", "model.safetensors": "01c4..."}}

By the key of the setting and the file's name in its folder ("" for a single file). Whole files are hashed, in 0.15 s
per GB and thread from the page cache. A model or a data file may move, but not change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from capo_fast.config.paths import resolve_model, resolve_path
from capo_fast.config.schema import Config, DataConfig, EvalConfig
from capo_fast.config.sft import SftConfig
from capo_fast.data import read_rows
from capo_fast.engine.remote import Crossing
from capo_fast.errors import ConfigError
from capo_fast.policy.manifest import ADVICE
from capo_fast.runtime.digest import READERS, bytes_digest, file_digest
from capo_fast.runtime.job import this_job
from capo_fast.runtime.ranks import on_every_rank, on_first_rank

Digests = dict[str, dict[str, str]]

READ_OF_A_MODEL = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".tiktoken")
"""Suffixes of the files that transformers and the engine read. Others in the folder (a README) may change."""


def input_paths(config: Config | SftConfig) -> dict[str, str]:
    """The paths of this run's inputs, by the key of their setting."""
    return {key: path for key, path in config.input_paths.items() if path is not None}


def input_digests(config: Config | SftConfig) -> Digests:
    """Digests of all inputs, computed by the ranks of each host together. A collective of a role's ranks.

    Raises ConfigError, also if two hosts of the role have different files.
    """
    files = on_first_rank(lambda: {key: _files(key, path) for key, path in input_paths(config).items()})
    flat = [(key, name, path) for key, found in files.items() for name, path in found.items()]
    job = this_job()
    mine = flat[job.mates.index(job.rank) :: len(job.mates)]
    by_node: dict[int, Digests] = {}
    for node, part in on_every_rank(lambda: (job.node, _hash(mine))):
        digests = by_node.setdefault(node, {key: {} for key in files})
        for key, name, digest in part:
            digests[key][name] = digest
    _check_same(by_node, flat)
    return by_node[min(by_node)] | on_first_rank(lambda: _hub_data(config, files))


def _check_same(by_node: Mapping[int, Digests], files: Sequence[tuple[str, str, Path]]) -> None:
    """Raises ConfigError if a host's files differ from those of the host of the role's first rank."""
    places, first = this_job().places, min(by_node)
    for node, digests in by_node.items():
        for key, name, path in files:
            if digests[key][name] != by_node[first][key][name]:
                hosts = f"{places[node].host} and {places[first].host}"
                raise ConfigError(f"{key}: {path} differs between {hosts}, wanted the same file on every host")


def same_digests(config: Config, crossing: Crossing | None) -> Digests:
    """Digests of all inputs, checked to be the same on every host. A collective on all ranks. Raises ConfigError."""
    digests = input_digests(config)
    if crossing is not None:
        learners, engines = (crossing.all.share(digests, first) for first in (0, crossing.first_engine))
        check_same_inputs(learners, engines, config)
    return digests


def check_same_inputs(learners: Digests, engines: Digests, config: Config) -> None:
    """Raises ConfigError if the files on hosts that only hold engines differ from the others'."""
    paths, job = input_paths(config), this_job()
    for key in learners | engines:
        theirs, ours = learners.get(key, {}), engines.get(key, {})
        for name in sorted(theirs | ours):
            if theirs.get(name) != ours.get(name):
                hosts = f"{job.places[job.learners].host} and {job.places[0].host}"
                where = _place(paths[key], name)
                raise ConfigError(f"{key}: {where} differs between {hosts}, wanted the same file on every host")


def _place(path: str, name: str) -> str:
    return str(Path(path, name)) if name else path


def check_inputs(before: Digests, now: Digests, config: Config | SftConfig, run: Path) -> None:
    """Raises ConfigError, naming the setting and file, if a content differs from that at the start of the run."""
    for key, path in input_paths(config).items():
        old, new = before.get(key, {}), now[key]
        for name in sorted(old | new):
            if old.get(name) != new.get(name):
                found = "is new" if name not in old else "is missing" if name not in new else "has changed"
                raise ConfigError(
                    f"{key}: {_place(path, name)} {found} since the run in {run} was started; put it back, or {ADVICE}"
                )


def _files(key: str, path: str) -> dict[str, Path]:
    """The files of a setting, by their names in its folder; none for data of the hub."""
    if key in ("model.path", "critic.path"):
        folder = model_folder(path, key)
        return {each.name: each for each in sorted(folder.iterdir()) if each.suffix in READ_OF_A_MODEL}
    file = resolve_path(path)
    if file.is_dir():  # a saved data set, in which `datasets` may keep its caches
        found = (each for each in sorted(file.rglob("*")) if each.is_file() and not each.name.startswith("cache-"))
        return {str(each.relative_to(file)): each for each in found}
    return {"": file} if file.exists() else {}


def model_folder(path: str, key: str = "model.path") -> Path:
    """The folder that a setting names, or the cache folder of a hub id that has been loaded."""
    model = resolve_model(path, key)
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download  # slow to import, and not needed for a folder

    return Path(snapshot_download(model, local_files_only=True))


def _hash(files: list[tuple[str, str, Path]]) -> list[tuple[str, str, str]]:
    try:
        with ThreadPoolExecutor(READERS) as pool:
            digests = pool.map(file_digest, [path for _, _, path in files])
            return [(key, name, digest) for (key, name, _), digest in zip(files, digests, strict=True)]
    except OSError as error:
        raise ConfigError(f"can't read {error.filename}: {error.strerror or error}") from error


def _hub_data(config: Config | SftConfig, files: Mapping[str, Mapping[str, Path]]) -> Digests:
    """Digests of the rows of data without a local file."""
    parts: dict[str, DataConfig | EvalConfig] = {"data.path": config.data, "eval.path": config.eval}
    return {key: {"": _rows_digest(parts[key])} for key in parts if key in files and not files[key]}


def _rows_digest(source: DataConfig | EvalConfig) -> str:
    assert source.path is not None
    rows = read_rows(source.path, source.name, source.split)
    return bytes_digest(json.dumps(row, default=str).encode() for _, row in rows)
