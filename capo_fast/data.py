"""Training and test problems: from a file or a data set to rendered prompts, and the order they are drawn in."""

from __future__ import annotations

import difflib
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError

from capo_fast.config.hub import reach_hub
from capo_fast.config.paths import PACKAGED, resolve_path
from capo_fast.config.schema import DataConfig
from capo_fast.errors import ConfigError
from capo_fast.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[str, Any]
"""Where a row stands, for messages, and what stands there."""


class DataError(ConfigError):
    """Data that can't be used: one line that names the file, the row and the field."""


@dataclass(frozen=True)
class Problem:
    """One problem as the data has it, before a tokenizer has seen it.

    Problem(id="gsm8k-7", problem="1+1=?", answer="2", solution=None)
    """

    id: str
    problem: str
    answer: str
    solution: str | None


def load_problems(path: str, fields: DataConfig) -> list[Problem]:
    """All problems of a JSONL, JSONL.gz or Parquet file, a saved data set's folder or a Hugging Face data set.

    `fields` names the split and the fields; `path` stands apart because held-out problems have the same fields.
    """
    seen: dict[str, str] = {}
    problems = []
    for index, (where, row) in enumerate(read_rows(path, fields.name, fields.split)):
        problem = _problem(where, row, index, fields)
        if problem.id in seen:
            raise DataError(
                f"{where}: id {problem.id!r} is taken by {seen[problem.id]}; {fields.id_field} must be unique"
            )
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise DataError(f"{path}: no problems in it")
    return problems


def render_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    max_prompt_tokens: int,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[Prompt]:
    """Prompts as the policy sees them: chat template with these arguments, system message if any, and the opening of
    its own turn.
    """
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    chats = [[*system, {"role": "user", "content": problem.problem}] for problem in problems]
    prompts = [
        Prompt(p.id, p.problem, p.answer, p.solution, tuple(ids))
        for p, ids in zip(problems, _apply_template(tokenizer, chats, template_kwargs), strict=True)
    ]
    long = [prompt for prompt in prompts if len(prompt.token_ids) > max_prompt_tokens]
    if long:
        raise DataError(
            f"{len(long)} of {len(prompts)} prompts are longer than {max_prompt_tokens} tokens, which is what "
            f"engine.max_model_len leaves beside the answer; the first is {long[0].id!r} with {len(long[0].token_ids)}"
        )
    return prompts


@dataclass(frozen=True)
class PromptOrder:
    """The endless order in which `size` problems are drawn: each epoch a new permutation, made of (seed, epoch) alone.

    A cursor is the number of problems drawn so far: it is all that a resumed run needs.

    >>> order = PromptOrder(size=3, seed=0)
    >>> first, cursor = order.take(0, 2)
    >>> then, cursor = order.take(cursor, 1)
    >>> sorted(first + then), cursor
    ([0, 1, 2], 3)
    """

    size: int
    seed: int

    def epoch(self, number: int) -> list[int]:
        """The permutation of one epoch."""
        order: list[int] = np.random.default_rng([self.seed, number]).permutation(self.size).tolist()
        return order

    def take(self, cursor: int, count: int) -> tuple[list[int], int]:
        """The next `count` indices and the cursor after them; a batch may reach into the next epochs."""
        end = cursor + count
        epochs = range(cursor // self.size, -(-end // self.size))
        order = [index for number in epochs for index in self.epoch(number)]
        start = cursor % self.size
        return order[start : start + count], end


@dataclass(frozen=True)
class Problems:
    """What a run trains on and is evaluated on."""

    prompts: list[Prompt]
    heldout: list[Prompt]
    order: PromptOrder
    """Of `prompts`."""

    def take(self, cursor: int, count: int) -> tuple[list[Prompt], int]:
        """The next `count` prompts and the cursor after them."""
        indices, cursor = self.order.take(cursor, count)
        return [self.prompts[index] for index in indices], cursor


def read_rows(path: str, name: str | None = None, split: str = "test") -> Iterator[Row]:
    """Every row of a JSONL, JSONL.gz or Parquet file, a saved data set's folder or a Hugging Face data set."""
    file = resolve_path(path)
    if file.is_dir():
        return _saved_rows(file, split)
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        return _json_rows(file)
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    if file.exists():
        raise DataError(f"{path}: unknown format; wanted .jsonl, .jsonl.gz, .parquet or a saved data set's folder")
    if path.startswith(PACKAGED) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path):
        raise DataError(f"{path}: no such file")
    return _hub_rows(path, name, split)


def _json_rows(file: Path) -> Iterator[Row]:
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, line {number}", _parsed(f"{file}, line {number}", line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: broken gzip file, {number} whole lines could be read: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: can't read it: {error.strerror or error}") from None


def _parsed(where: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {getattr(error, 'msg', error)}") from None


def _parquet_rows(file: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet  # slow to import, and JSONL needs none of it

    try:
        with parquet.ParquetFile(file) as table:
            rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
            yield from ((f"{file}, row {index}", row) for index, row in enumerate(rows))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (OSError, ArrowException) as error:
        raise DataError(f"{file}: can't read it as Parquet: {_one_line(error)}") from None


def _saved_rows(folder: Path, split: str) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk  # takes a second

    try:
        data = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a folder of datasets' save_to_disk: {_one_line(error)}") from None
    if isinstance(data, DatasetDict):
        if split not in data:
            raise DataError(f"{folder}: no split {split!r} (data.split); it has {', '.join(data)}")
        data = data[split]
    return ((f"{folder}, row {index}", row) for index, row in enumerate(data))


def _hub_rows(path: str, name: str | None, split: str) -> Iterator[Row]:
    from datasets import load_dataset  # takes a second

    cause = reach_hub()
    try:
        data = load_dataset(path, name, split=split)
    except (OSError, ValueError) as error:
        reason = cause or _one_line(error)
        raise DataError(f"{path}: no such file, and as a Hugging Face data set: {reason}") from None
    return ((f"{path}, row {index}", row) for index, row in enumerate(data))


def _problem(where: str, row: Any, index: int, fields: DataConfig) -> Problem:
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, wanted an object with the fields of a problem")
    number = row.get(fields.id_field)
    return Problem(
        id=str(index) if number in (None, "") else text_field(where, row, fields.id_field, "data.id_field", (str, int)),
        problem=text_field(where, row, fields.prompt_field, "data.prompt_field", (str,)),
        answer=text_field(where, row, fields.answer_field, "data.answer_field", (str, int, float)),
        solution=_solution(where, row, fields.solution_field),
    )


def _solution(where: str, row: dict[str, Any], field: str | None) -> str | None:
    """The reference solution; a row may have none, but the field has to be there, or its name is a typing error."""
    if field is None or (field in row and row[field] in (None, "")):
        return None
    return text_field(where, row, field, "data.solution_field", (str,))


def text_field(where: str, row: dict[str, Any], field: str, setting: str, kinds: tuple[type, ...] = (str,)) -> str:
    """A row's text (or number, where `kinds` says so), never empty. `setting` names what asked for the field."""
    if field not in row:
        near = difflib.get_close_matches(field, list(row), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{where}: no field {field!r} ({setting}); found {', '.join(map(repr, row)) or 'no fields'}{hint}"
        )
    value = row[field]
    if (
        not isinstance(value, kinds)
        or isinstance(value, bool)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        names = " or ".join("text" if kind is str else "a number" for kind in kinds[:2])
        raise DataError(
            f"{where}: field {field!r} ({setting}): found {json.dumps(value, default=repr)[:80]}, wanted {names}"
        )
    text = str(value)
    if not text.strip():
        raise DataError(f"{where}: field {field!r} ({setting}) is empty")
    if re.search("[\ud800-\udfff]", text):  # JSON can spell them, no tokenizer can read them
        raise DataError(f"{where}: field {field!r} ({setting}) is not Unicode text: it holds half of a surrogate pair")
    return text


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]], template_kwargs: Mapping[str, Any]
) -> list[list[int]]:
    if not chats:
        return []
    if not tokenizer.chat_template:
        raise DataError(f"model.path: the tokenizer of {tokenizer.name_or_path!r} has no chat template")
    try:
        form = {"tokenize": True, "return_dict": False}
        return tokenizer.apply_chat_template(chats, add_generation_prompt=True, **form, **template_kwargs)
    except (TemplateError, ValueError) as error:
        hint = "; if it takes no system message, set data.system_prompt: null" if len(chats[0]) > 1 else ""
        raise DataError(f"model.path: the chat template can't render a prompt: {_one_line(error)}{hint}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
