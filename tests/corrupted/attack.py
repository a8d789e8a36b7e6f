"""Runs the commands on damaged runs, one after another, and classifies the outcomes."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
import scripted_run
from safetensors.torch import load_file
from scripted_world import scripted_engine

import capo_fast.evaluate as evaluate
import capo_fast.report.__main__ as report
import capo_fast.runlog.status as status
from capo_fast.command import run_command
from tests.corrupted.damages import DAMAGES, damage

SETTINGS = [
    *("--checkpoint.every", "1", "--eval.every", "1", "--eval.limit", "4"),
    *("--rollout.prompts", "2", "--rollout.n", "2", "--train.minibatches", "1"),
    *("--rollout.carry", "true", "--rollout.enough", "1", "--loss.is_mode", "truncate"),
]
LOST = "other metrics"
LONGEST_S = 240
TIMED = ("time/", "cpu/", "engine/", "memory", "speed/", "tokens_per_s")


class Attack:
    """An undamaged run of two steps and its resumed third step, both in one folder."""

    def __init__(self, folder: Path, verbose: bool) -> None:
        self.folder, self.verbose = folder, verbose
        self.sound, self.resumed = folder / "sound", folder / "resumed"
        self.train_whole(self.sound, 2)
        shutil.copytree(self.sound, self.resumed)
        self.train_whole(self.resumed, 3)

    def run(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Outcomes by file name and damage."""
        found: dict[str, dict[str, str]] = {name: {} for name in names}
        for name in names:
            for way in DAMAGES:
                shutil.copytree(self.sound, run := self.folder / "run", symlinks=True)
                if damage(run, name, way):
                    print(f"{name}: {way}", file=sys.stderr, flush=True)
                    found[name][way] = self.outcome(run, name)
                shutil.rmtree(run)
        return found

    def outcome(self, run: Path, name: str) -> str:
        others = {"status": status.main, "report": report.main, "evaluate": evaluate_scripted}
        if name.startswith("checkpoints"):  # report and evaluate do not read them
            others = {"status": status.main}
        torn = [name for name, work in others.items() if "Traceback" in self.child(work, [str(run)])[1]]
        before = state(run / "checkpoints")
        code, text = self.train(run, 3)
        return " ".join([self.classify(run, code, text, before), *(f"{name} TRACEBACK" for name in torn)])

    def classify(self, run: Path, code: int, text: str, before: object) -> str:
        if "Traceback" in text:
            return "TRACEBACK"
        if code:
            lines = [line for line in text.splitlines() if line.startswith("capo_fast: error: ")]
            sound = code in (1, 2) and len(lines) == 1 and state(run / "checkpoints") == before
            return "refused" if sound else f"SILENT exit {code}"
        warned, difference = "capo_fast: warning: " in text, different(run, self.resumed)
        if difference and not (warned and difference == LOST):
            return f"SILENT {difference}"
        return "lost" if difference else "warned" if warned else "harmless"

    def train_whole(self, run: Path, steps: int) -> None:
        code, text = self.train(run, steps)
        assert code == 0, f"the run without damage has exit status {code}:\n{text}"

    def train(self, run: Path, steps: int) -> tuple[int, str]:
        return self.child(scripted_run.main, ["--run.dir", str(run), "--train.steps", str(steps), *SETTINGS])

    def child(self, work: Callable[[list[str]], object], arguments: list[str]) -> tuple[int, str]:
        """Exit status and output of a command in a process of its own."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        process = forked.FORKS.Process(target=logged, args=(work, arguments, log))
        process.start()
        process.join(LONGEST_S)
        text = log.read_text(errors="replace")
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{arguments} has not exited after {LONGEST_S} s:\n{text}")
        if self.verbose:
            print(text, file=sys.stderr, flush=True)
        return process.exitcode, text


def logged(work: Callable[[list[str]], object], arguments: list[str], log: Path) -> None:
    forked.output_to(log)
    sys.exit(work(arguments))


def evaluate_scripted(arguments: list[str]) -> int:
    run = arguments[0]
    words = ["--model", run, "--benchmarks", "tiny", "--limit", "2", "--out", f"{run}-evaluated"]
    try:
        return run_command(lambda: bool(evaluate.run(*evaluate.job_of(words), scripted_engine())) - 1)
    finally:
        shutil.rmtree(f"{run}-evaluated", ignore_errors=True)


def state(folder: Path) -> object:
    """Names and sizes of all files."""
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


def different(run: Path, other: Path) -> str | None:
    """The first kind of result in which two runs differ; None if they are equal."""
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (run, other)]
    if not all(weights[0][name].equal(weights[1][name]) for name in weights[1]):
        return "other weights"
    lines = [[timeless(line) for line in (folder / "metrics.jsonl").open()] for folder in (run, other)]
    if lines[0] != lines[1]:
        return LOST
    return None if rollouts(run) == rollouts(other) else "other rollouts"


def timeless(line: str) -> dict[str, object]:
    return {key: value for key, value in json.loads(line).items() if not key.startswith(TIMED)}


def rollouts(run: Path) -> dict[str, bytes]:
    """The rollouts that the resumed step has written."""
    return {path.name: gzip.decompress(path.read_bytes()) for path in run.glob("rollouts/000003.jsonl.gz")}
