"""Cost of a checkpoint per step, synchronous and asynchronous (`checkpoint.asynchronous`).

    python -m bench.trainer.checkpointing --model FOLDER [--rollouts 16] [--tokens 256] [--rounds 3] [--ranks 1]
                                          [--dir FOLDER] [--json FILE]

A step here is only the learner's, on random responses. A run's step also has sampling and critiques, so a checkpoint is
a smaller share of it. Each step ends with a checkpoint; the two modes take turns.

    waits     time/checkpoint, for which the step is blocked
    cpu       cpu/checkpoint of all ranks: staging, writing, hashing
    learn     time/learn of the step during which it is written
    whole     from the save to the completed checkpoint

The disk is that of `--dir`, by default a temporary folder; it needs space for three times the state of the run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bench.machine import about
from bench.trainer.launched import on_ranks
from bench.trainer.learner import sample_of
from capo_fast.config.schema import Config, LossConfig, PolicyConfig, TrainConfig
from capo_fast.exchange.columns import Columns, Share
from capo_fast.markdown import markdown_table
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.policy.learner import Learner
from capo_fast.policy.manifest import RUN_SECTIONS
from capo_fast.policy.model import load_model, shard_policy
from capo_fast.records import Prompt
from capo_fast.runtime.failures import Deadline
from capo_fast.runtime.ranks import StopSignal, gather, on_first_rank, ranks
from capo_fast.runtime.stages import Lap, Stages

GROUP, PROMPT = 8, 32
MODES = {"synchronous": False, "asynchronous": True}
CONFIG = Config(
    policy=PolicyConfig(dtype="float32"),
    loss=LossConfig(kl_coef=0.0),
    train=TrainConfig(epochs=1, minibatches=1, micro_tokens=2048, lr=1e-5),
)


def share_of(options: argparse.Namespace, vocab: int) -> Share:
    """Random rollouts, all on the first rank."""
    prompts = {group: Prompt("", "", "", None, (group + 5,) * PROMPT) for group in range(options.rollouts // GROUP)}
    samples = [
        sample_of(prompt, group, i, options.tokens, vocab, live=True)
        for group, prompt in prompts.items()
        for i in range(GROUP)
    ]
    share = Share.of(samples)
    return share if dist.get_rank() == 0 else replace(share, columns=Columns.of([]))


class Bench:
    """The learner, and a checkpointer per mode."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        model = load_model(options.model, "sdpa").train()
        self.share = share_of(options, model.config.vocab_size)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self.learner = Learner(shard_policy(model, CONFIG.policy, mesh), None, CONFIG)
        self.stages = Stages(StopSignal(), Deadline(3600.0))
        self.step = 0
        root = on_first_rank(lambda: Path(tempfile.mkdtemp(dir=options.dir)))
        self.places = {mode: Checkpointer(root / mode, 1, asynchronous) for mode, asynchronous in MODES.items()}
        self.root = root

    def round(self, mode: str) -> dict[str, Any]:
        """A checkpoint, and the step during which it may be written."""
        place, self.step = self.places[mode], self.step + 1
        self.stages.background = {"checkpoint": place.cpu_seconds}
        start = time.perf_counter()
        with self.stages("checkpoint"):
            place.save(self.step, self.learner, dict.fromkeys(RUN_SECTIONS))
        saved = self.stages.lap()
        with self.stages("learn"):
            self.learner.train(self.share)
        place.check()
        learned = self.stages.lap()
        with self.stages("checkpoint"):
            place.wait()
        return self._figures(saved, learned, self.stages.lap()) | {"mode": mode, "whole": time.perf_counter() - start}

    def _figures(self, saved: Lap, learned: Lap, waited: Lap) -> dict[str, float]:
        mine = sum(lap.cpu.get("checkpoint", 0.0) for lap in (saved, learned, waited))
        size = sum(path.stat().st_size for path in self.root.glob("*/step_*/*")) if dist.get_rank() == 0 else 0
        return {
            "waits": saved.wall["checkpoint"],
            "learn": learned.wall["learn"],
            "cpu": sum(gather([mine])),
            "cpu/learn": sum(gather([learned.cpu["learn"]])),
            "bytes": size / max(1, len(list(self.root.glob("*/step_*")))),
        }

    def close(self) -> None:
        for place in self.places.values():
            place.close()
        self.stages.deadline.stop()
        on_first_rank(lambda: shutil.rmtree(self.root))


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Figures of each round; the first round of each mode allocates memory and is left out."""
    with ranks() as device:
        bench = Bench(options, device)
        try:
            for number in range(options.rounds + 1):
                for mode in MODES:
                    figures = bench.round(mode)
                    if number:
                        yield figures
        finally:
            bench.close()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the rounds."""
    keys, cells = ("waits", "learn", "cpu", "cpu/learn", "whole"), []
    for mode in MODES:
        middle = {key: median(row[key] for row in rows if row["mode"] == mode) for key in keys}
        share = middle["waits"] / (middle["waits"] + middle["learn"])
        cells.append([mode, *(f"{middle[key]:.2f}" for key in keys), f"{share:.1%}"])
    return markdown_table(["written", *(f"{key}, s" for key in keys), "waits of a step"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--rollouts", type=int, default=16, help=f"a multiple of {GROUP}")
    parser.add_argument("--tokens", type=int, default=256, help="tokens per response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--dir", help="folder for the checkpoints")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.worker:
        for row in measure(options):
            if dist.get_rank() == 0:
                print(json.dumps(row), flush=True)
        return
    names = ("model", "rollouts", "tokens", "rounds", "dir")
    words = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) is not None]
    rows = on_ranks(__spec__.name, options.ranks, words)
    print(f"{table(rows)}\n\n{rows[0]['bytes'] / 1e9:.2f} GB")
    if options.json:
        found = {"about": about(threads=torch.get_num_threads()), "ranks": options.ranks, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
