"""Folders of bench.words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEED = 0
"""Seed of the world: its problems and misconceptions."""


@dataclass(frozen=True)
class Places:
    """Folder of large files, which can be remade, and folder of results, which are committed."""

    runs: Path = Path("runs/words")
    results: Path = Path("bench/results/words")

    @property
    def pretrained(self) -> Path:
        """The folder that `capo fetch smollm2 --out` writes."""
        return self.runs / "smollm2"

    @property
    def data(self) -> Path:
        return self.runs / "data"

    @property
    def base(self) -> Path:
        """The fine-tuned model: the pretrained one with `adapter` merged."""
        return self.runs / "base"

    @property
    def labelled(self) -> Path:
        """Step-labelled sets outside the world, one file each."""
        return self.runs / "labelled"

    @property
    def on_labels(self) -> Path:
        """The run folder of the critic that is fine-tuned on these sets."""
        return self.runs / "critic"

    @property
    def adapter(self) -> Path:
        return self.results / "adapter"

    def shard(self, arm: str, seed: int) -> Path:
        return self.results / "runs" / f"{arm}-{seed}.json"
