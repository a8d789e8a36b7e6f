"""Records that a run writes while it trains: metrics, rollouts, and the views of the metrics.

    <run>/metrics.jsonl               one line per step
    <run>/rollouts/000003.jsonl.gz    one line per rollout of step 3
    <run>/tensorboard/                a view of metrics.jsonl; W&B is another, if enabled

Rank 0 has a `RunFolder`; every other rank a plain `Recorder`, which does nothing, so the loop has one form:

    recorder = RunFolder(folder, keep_rollouts="all") if rank == 0 else Recorder()
    recorder.record(step, {"pass_rate": 0.41, "time/rollout": 1.9})

The folder stays readable after any kill: lines and files are written atomically, and opening the folder again removes
a line or file that a power cut or a SIGKILL left incomplete.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import reprlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from capo_fast.errors import ConfigError
from capo_fast.runtime.files import TEMPORARY, RecordError, append, finite, json_line, naming, replacing
from capo_fast.verify import extract_answer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from capo_fast.records import CreditedSample, Critique

Metrics = Mapping[str, float | int | None]


class Recorder:
    """The recorder of every rank but 0: records nothing."""

    def record(self, step: int, metrics: Metrics) -> None:
        """Write the metrics of one training step. Steps must increase: one line per step."""

    def write_rollouts(self, step: int, members: Iterable[bytes]) -> None:
        """Write the rollouts of one training step; `members` are results of `packed_rows`."""

    def cut_back(self, step: float) -> None:
        """Remove all records after `step`, the step of the resumed checkpoint; -1 removes all."""

    def close(self) -> None:
        """Close the views; the records are on disk already."""


class RunFolder(Recorder):
    """Writes a run's metrics and rollouts to its folder, and the metrics to TensorBoard and W&B."""

    def __init__(
        self,
        folder: str | Path,
        keep_rollouts: int | Literal["all", "none"] = "all",
        wandb: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`wandb` is a W&B project, `settings` the run's configuration there."""
        self.folder = Path(folder)
        self.metrics = self.folder / "metrics.jsonl"
        self.rollouts = self.folder / "rollouts"
        self._keep = keep_rollouts
        self._last = -1
        with naming(self.rollouts):
            self.rollouts.mkdir(parents=True, exist_ok=True)
        self._tensorboard = _TensorBoard(self.folder / "tensorboard")
        self._wandb = _Wandb(self.folder, wandb, settings or {}) if wandb else None
        self.cut_back(math.inf)  # removes only incomplete lines and files of an earlier process

    def record(self, step: int, metrics: Metrics) -> None:
        if step <= self._last:
            raise ValueError(f"step {step} after step {self._last} in {self.metrics}: use cut_back to go back")
        values = {key: finite(value) for key, value in metrics.items()}
        append(self.metrics, json_line({"step": step} | values))
        self._last = step
        shown = {key: value for key, value in values.items() if value is not None}
        self._tensorboard.add(step, shown)
        if self._wandb:
            self._wandb.add(step, shown)

    def write_rollouts(self, step: int, members: Iterable[bytes]) -> None:
        if not keeps_rollouts(self._keep):
            return
        with replacing(self.rollouts / f"{step:06d}.jsonl.gz") as file:
            file.writelines(members)
        if self._keep != "all":
            self._remove(sorted(self._steps())[: -int(self._keep)])

    def cut_back(self, step: float) -> None:
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= step]
        with replacing(self.metrics) as file:
            file.writelines(json_line(line) for line in kept)
        self._remove(late for late in self._steps() if late > step)
        for torn in self.rollouts.glob(f"*{TEMPORARY}"):
            torn.unlink()
        self._last = kept[-1]["step"] if kept else -1
        self._tensorboard.close()
        self._tensorboard = _TensorBoard(self.folder / "tensorboard")

    def close(self) -> None:
        self._tensorboard.close()
        if self._wandb:
            self._wandb.close()

    def _steps(self) -> list[int]:
        return list(rollout_files(self.folder))

    def _remove(self, steps: Iterable[int]) -> None:
        for step in steps:
            (self.rollouts / f"{step:06d}.jsonl.gz").unlink()


def keeps_rollouts(keep: int | Literal["all", "none"]) -> bool:
    """True if `run.keep_rollouts` keeps any."""
    return keep not in ("none", 0)


def packed_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A part of a rollouts file: one gzip member, which may follow others; empty without rows."""
    lines = BytesIO()
    # No name and no time in the gzip header: the same rollouts are the same bytes.
    with gzip.GzipFile("", "wb", 6, lines, mtime=0) as packed:
        empty = not sum(packed.write(json_line(row)) for row in rows)
    return b"" if empty else lines.getvalue()


def rollout_row(credited: CreditedSample) -> dict[str, Any]:
    """One line of a rollouts file. `steps`, `votes`, `advantages` [S]; `step_starts` [L], True on a step's first token.

    `answer` is the reference, `extracted` the answer that the rule verifier finds in `text`, null if there is none.
    `outcome` is the verdict, null if the check of the answer timed out; `rewards` the values of `reward.fn` and of
    each function of `reward.also`; `reward` is the factor of the outcome weight. The steps' texts, as in the critic's
    prompt, repeat `text`: gzip makes them nearly free. `versions` is present if several policies wrote the rollout:
    version and number of tokens of each part, oldest first. `token_advantages` [L] is present with token credit, whose
    `advantages` are the largest of each step by magnitude.
    """
    sample, rollout = credited.sample, credited.rollout
    return {
        "prompt_id": rollout.prompt.id,
        "group": rollout.group,
        "sample": rollout.sample,
        "policy_version": rollout.version,
        "problem": rollout.prompt.problem,
        "answer": rollout.prompt.answer,
        "text": rollout.text,
        "steps": list(rollout.steps.texts),
        "extracted": extract_answer(rollout.text, truncated=not rollout.finished),
        "outcome": finite(sample.outcome),
        "rewards": [finite(value) for value in sample.rewards],
        "reward": finite(credited.outcome),
        "trained": credited.trained,
        "stop_reason": "stop" if rollout.finished else "length",
        "votes": [finite(vote) for vote in sample.step_wrong],
        "advantages": [finite(advantage) for advantage in credited.step_advantages],
        "critiques": list(map(_critique, sample.critiques)),
        "token_ids": list(rollout.token_ids),
        "step_starts": list(rollout.steps.starts),
        **({"versions": list(map(list, rollout.versions))} if rollout.earlier else {}),
        **_token_credit(credited),
    }


def _critique(critique: Critique) -> dict[str, Any]:
    """Only critiques of single steps have `unread`."""
    row = asdict(critique) | {"wrong_steps": sorted(critique.wrong_steps), "unread": sorted(critique.unread)}
    return row if critique.unread else {name: value for name, value in row.items() if name != "unread"}


def _token_credit(credited: CreditedSample) -> dict[str, Any]:
    if credited.token_advantages is None:
        return {}
    return {"token_advantages": [finite(advantage) for advantage in credited.token_advantages]}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order. Text after the last newline is ignored: it is incomplete or being written.

    Raises RecordError for a line that is no object of numbers, or whose step does not increase.
    """
    try:
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    except OSError as error:
        raise RecordError(f"{path} can't be read: {error.strerror or error}") from error
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(whole.splitlines(), start=1):
        line = _metrics_line(text, f"{path}, line {number}")
        if lines and line["step"] <= lines[-1]["step"]:
            raise RecordError(f"{path}, line {number}: found step {line['step']} after step {lines[-1]['step']}")
        lines.append(line)
    return lines


def _metrics_line(text: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}, is not JSON ({error})") from error
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or line["step"] < 0:
        raise RecordError(f"{where}: found {reprlib.repr(line)}, wanted an object with a step")
    for key, value in line.items():
        if not (value is None or type(value) is int or (type(value) is float and math.isfinite(value))):
            raise RecordError(f"{where}: {key}: found {reprlib.repr(value)}, wanted a number")
    return line


def rollout_files(run: Path) -> dict[int, Path]:
    """The rollouts on disk by step; files with other names are ignored."""
    names = {path.name.removesuffix(".jsonl.gz"): path for path in sorted(run.glob("rollouts/*.jsonl.gz"))}
    return {int(name): path for name, path in names.items() if re.fullmatch("[0-9]{6}|[1-9][0-9]{6,}", name)}


class _TensorBoard:
    """A `SummaryWriter`, opened at the first step, whose file makes TensorBoard drop that step and later ones of
    earlier files.

    SummaryWriter writes in a thread of its own. Flushed after each step it waits for that thread, so that a kill loses
    no step; an error of the thread is raised by this flush or by the next step's. A full disk fails earlier, at
    the write of metrics.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second

        with naming(self._folder):
            self._writer = self._writer or SummaryWriter(str(self._folder), purge_step=step)
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """A Weights & Biases run. A resumed run repeats its steps bit for bit, so W&B may keep the steps already logged."""

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb  # optional: no extra installs it
        except ModuleNotFoundError as error:
            message = f"run.wandb={project}: the package {error.name} is not installed (pip install {error.name})"
            raise ConfigError(message) from error
        id_file = folder / "wandb.id"
        if not id_file.exists():
            with replacing(id_file) as file:
                file.write(secrets.token_hex(4).encode())
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=id_file.read_text(),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
