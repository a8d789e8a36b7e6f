"""The folder of an evaluation: its settings, and every finished answer, so that none is sampled twice.

<out>/settings.json     the settings that determine the answers; a second start with other settings is refused
      answers-0.jsonl   one line per answer, in order of completion; one file per rank
      results.json      computed from the two above
      results.md
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch.distributed as dist

from capo_fast.config.dotted import dotted
from capo_fast.engine.base import Completer, stream_requests
from capo_fast.errors import ConfigError, Interrupted
from capo_fast.records import Request
from capo_fast.runlog.console import AnswerDisplay
from capo_fast.runtime.digest import digest
from capo_fast.runtime.files import RecordError, append, json_line, lock, naming, read_mapping, replacing
from capo_fast.runtime.ranks import EngineGroup, on_first_rank

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Answer:
    """A finished answer, stored as one JSON line."""

    id: str
    text: str
    finished: bool
    prompt_tokens: int
    tokens: int
    seconds: float
    """Seconds since the previous answer (or the start); they add up to the total time."""


class Store:
    """The answers of one folder. Created on all ranks together; rank 0 holds a lock on the folder until exit."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Raises ConfigError if the folder's answers were made with other settings, RecordError if it is locked."""
        self.folder: Path = on_first_rank(lambda: folder)  # a default name has the time, to the second
        self._guard: BinaryIO | None = None
        self._answers: dict[str, Answer] = on_first_rank(lambda: self._open(settings))

    def _open(self, settings: Mapping[str, Any]) -> dict[str, Answer]:
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            guard = lock(self.folder)
        with ExitStack() as undo:
            undo.callback(guard.close)
            answers = self._read(settings)
            undo.pop_all()
        self._guard = guard
        return answers

    def _read(self, settings: Mapping[str, Any]) -> dict[str, Answer]:
        path, files = self.folder / SETTINGS_FILE, sorted(self.folder.glob("answers-*.jsonl"))
        if files and not path.exists():
            raise ConfigError(f"{self.folder} has answers but no {path.name}; take another --out")
        if files:
            check_same(read_mapping(path), settings, self.folder)
        with replacing(path) as file:
            file.write(json.dumps(settings, indent=1).encode() + b"\n")
        return {answer.id: answer for path in files for answer in read_answers(path)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        """Turns Ctrl-C into Interrupted: answers are saved one by one."""
        if self._guard is not None:
            self._guard.close()
        if kind is KeyboardInterrupt:
            raise Interrupted(f"every finished answer is saved; --out {self.folder} resumes") from None

    def tokens(self) -> int:
        """Tokens of the answers on disk, prompts included."""
        return sum(answer.prompt_tokens + answer.tokens for answer in self._answers.values())

    def complete(
        self, start: Callable[[], Completer], requests: Sequence[Request], what: str, group: EngineGroup
    ) -> dict[str, Answer]:
        """The answer to every request, by id: from disk, else from an engine. A collective.

        `start` returns the engine; it is called only if answers are missing.
        """
        missing = [request for request in requests if request.id not in self._answers]
        if missing:
            label = f"{what}, engine 0 of {group.count}" if group.count > 1 else what
            new = list(self._sample(start(), missing[group.index :: group.count], label, group.is_first))
            self._answers |= {answer.id: answer for answer in group.gather(new)}
        return {request.id: self._answers[request.id] for request in requests}

    def _sample(self, engine: Completer, requests: Sequence[Request], what: str, keep: bool) -> Iterator[Answer]:
        path = self.folder / f"answers-{dist.get_rank()}.jsonl"
        lengths = {request.id: len(request.prompt_ids) for request in requests}
        with AnswerDisplay(what, len(requests), dist.get_rank()) as display:
            before = time.monotonic()
            for done in stream_requests(engine, requests):
                now = time.monotonic()
                tokens = lengths[done.id] or done.prompt_tokens, done.tokens
                answer, before = Answer(done.id, done.text, done.finished, *tokens, round(now - before, 6)), now
                if keep:
                    append(path, json_line(asdict(answer)))
                display.advance(answer.tokens)
                yield answer


def read_answers(path: Path) -> list[Answer]:
    """All whole lines; a last line cut off by a kill is removed from the file. Raises RecordError."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with naming(path), path.open("r+b") as file:
            file.truncate(whole)
    answers = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            answers.append(Answer(**json.loads(line)))
        except (ValueError, TypeError):
            raise RecordError(f"{path}, line {number}: not an answer; remove the line to sample it again") from None
    return answers


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError with the first setting that differs."""
    difference = first_difference(before, now)
    if difference is not None:
        key, then, wanted = difference
        raise ConfigError(
            f"{key}: {wanted!r}, but the answers in {folder} were made with {then!r}; "
            "take the same settings, or another --out"
        )


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first dotted key whose values differ, with both; None for a missing one."""
    ones, others = dotted(one), dotted(other)
    for key in ones | others:
        if ones.get(key) != others.get(key):
            return key, ones.get(key), others.get(key)
    return None


def fingerprint(model: str) -> str | None:
    """Twelve hex digits that change with the weights or tokenizer of a model's folder; None for a hub id.

    Hashes small files whole, and of a weight file its size and 64 pieces spread over it, so that 100 GB take seconds.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    return digest(piece for path in sorted(folder.iterdir()) if path.is_file() for piece in _pieces(path))


_PIECE, _PIECES = 1 << 16, 64


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name} {size}\n".encode()
    if size <= _PIECE * _PIECES:
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        for i in range(_PIECES):
            file.seek((size - _PIECE) * i // (_PIECES - 1))
            yield file.read(_PIECE)
