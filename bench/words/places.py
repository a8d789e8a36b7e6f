"""Where bench.words reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEED = 0
"""Of the world: its problems and misconceptions."""


@dataclass(frozen=True)
class Places:
    """The folders of large files, which can be made again, and of results, which are committed."""

    runs: Path = Path("runs/words")
    results: Path = Path("bench/results/words")

    @property
    def pretrained(self) -> Path:
        """What `capo fetch smollm2 --out` makes."""
        return self.runs / "smollm2"

    @property
    def data(self) -> Path:
        return self.runs / "data"

    @property
    def base(self) -> Path:
        """The fine-tuned model: the pretrained one with `adapter` merged."""
        return self.runs / "base"

    @property
    def adapter(self) -> Path:
        return self.results / "adapter"

    def shard(self, arm: str, seed: int) -> Path:
        return self.results / "runs" / f"{arm}-{seed}.json"
