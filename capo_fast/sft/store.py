"""Examples on disk, written once per node and memory-mapped by its ranks, so that millions of them need no memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from capo_fast.config.sft import SftConfig
from capo_fast.data import DataError
from capo_fast.runtime.digest import seed_of
from capo_fast.runtime.files import naming, temporary_folder, write_all
from capo_fast.runtime.ranks import once_a_node
from capo_fast.sft.conversations import Conversation, heldout_source, read_conversations
from capo_fast.sft.examples import AnswerTemplate, Example


class Examples(Sequence[Example]):
    """The examples of a folder written by `ExampleWriter`."""

    def __init__(self, folder: Path) -> None:
        self._starts, self._prompts = np.load(folder / "starts.npy"), np.load(folder / "prompts.npy")
        self._ids, self._trained = (_mapped(folder / name, kind) for name, kind in FILES)

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        start, stop, prompt = (int(x) for x in (*self._starts[index : index + 2], self._prompts[index]))
        ids, trained = self._ids[start:stop].tolist(), self._trained[start + prompt : stop].tolist()
        return Example(tuple(ids[:prompt]), tuple(ids[prompt:]), tuple(trained))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [E], tokens of each."""
        return np.diff(self._starts)


FILES = (("ids.bin", np.int32), ("trained.bin", np.bool_))


def _mapped(path: Path, kind: Any) -> np.ndarray:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


class ExampleWriter:
    """Writes examples to a folder, one after the other."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        folder.mkdir()
        self._folder, self._starts, self._prompts = folder, array("q", [0]), array("q")
        self._files = [stack.enter_context((folder / name).open("wb", buffering=0)) for name, _ in FILES]

    def add(self, example: Example) -> None:
        """Raises RecordError, as on a full disk."""
        ids, trained = self._files
        with naming(self._folder):
            write_all(ids, np.array((*example.prompt_ids, *example.token_ids), np.int32).tobytes())
            write_all(trained, np.array((False,) * len(example.prompt_ids) + example.trained, np.bool_).tobytes())
        self._starts.append(self._starts[-1] + len(example))
        self._prompts.append(len(example.prompt_ids))

    def close(self) -> None:
        with naming(self._folder):
            np.save(self._folder / "starts.npy", np.array(self._starts, np.int64))
            np.save(self._folder / "prompts.npy", np.array(self._prompts, np.int64))


@dataclass(frozen=True)
class SftData:
    """Training and held-out examples of a run. No problem is in both."""

    train: Examples
    heldout: Examples
    overlong: int
    """Examples dropped because of their length."""
    repeated: int
    """Rows of data.path left out because eval.path has their problem."""

    def notes(self) -> Iterator[str]:
        """Lines about dropped and left-out data."""
        if self.overlong:
            yield f"{self.overlong:,} examples are dropped: they are longer than data.max_tokens"
        if self.repeated:
            yield f"{self.repeated:,} rows of data.path are left out: eval.path has their problems"


def load_examples(config: SftConfig, template: AnswerTemplate, longest: int) -> SftData:
    """All examples, of at most `longest` tokens each. A collective. Raises DataError."""
    with ExitStack() as stack:
        folder, overlong, repeated = once_a_node(lambda: _write(config, template, longest, stack))
        try:
            found = [Examples(folder / name) for name in SIDES]
        finally:
            once_a_node(lambda: None)  # mapped by all ranks, the files may be deleted
    return SftData(found[0], found[1], overlong, repeated)


SIDES = ("train", "heldout")


def _write(config: SftConfig, template: AnswerTemplate, longest: int, stack: ExitStack) -> tuple[Path, int, int]:
    """Writes the examples. Returns their folder and the numbers dropped and left out."""
    folder = stack.enter_context(temporary_folder())
    template.check()
    fits = Fits(config, longest)
    with ExitStack() as files:
        train, heldout = (ExampleWriter(folder / name, files) for name in SIDES)
        repeated, held = 0, set[int]()
        if config.eval.path:
            for each in read_conversations(config, heldout_source(config), template.chat.tokenizer):
                held.add(_key(each))
                fits.add(each, template, heldout)
        chosen = _chooser(config, held)
        for each in read_conversations(config, config.data, template.chat.tokenizer):
            if not chosen(each):
                fits.add(each, template, train)
            elif config.eval.path:
                repeated += 1
            else:
                fits.add(each, template, heldout)
        train.close()
        heldout.close()
    fits.check(len(Examples(folder / "train")))
    return folder, fits.overlong, repeated


def _chooser(config: SftConfig, held: set[int]) -> Callable[[Conversation], bool]:
    """Returns a function: is a conversation held out, by eval.path, or at random by the seed and its problem alone?"""
    if config.eval.path:
        return lambda each: _key(each) in held
    return lambda each: seed_of(config.seed, "held out", _text(each)) < config.eval.share * 2**63


def _text(conversation: Conversation) -> str:
    return " ".join(conversation.problem.split())


def _key(conversation: Conversation) -> int:
    return seed_of(_text(conversation))


class Fits:
    """Counts the examples that are too long."""

    def __init__(self, config: SftConfig, longest: int) -> None:
        self._config, self._longest = config, longest
        self.overlong = 0

    def add(self, conversation: Conversation, template: AnswerTemplate, side: ExampleWriter) -> None:
        """Write the conversation's example, or drop it. Raises DataError under `data.overlong: refuse`."""
        example = template.example(conversation)
        if len(example) <= self._longest:
            side.add(example)
            return
        self.overlong += 1
        if self._config.data.overlong == "refuse":
            raise DataError(
                f"{conversation.where}: found {len(example)} tokens, wanted at most {self._longest} (data.max_tokens); "
                "data.overlong: drop leaves it out"
            )

    def check(self, left: int) -> None:
        """Raises DataError if no example is left to train on."""
        if not left:
            dropped = f": all {self.overlong} are too long, or held out" if self.overlong else ", or all held out"
            raise DataError(f"{self._config.data.path}: no examples to train on{dropped}")
