"""The faults of faults.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """One small edit and the tests that must detect it."""

    name: str
    file: str
    old: str
    new: str
    why: str
    """The effect of the fault for a user."""
    tests: tuple[str, ...]

    def spoil(self, text: str) -> str:
        """The file's text with the fault. Raises ValueError unless the old text occurs exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} times {self.old!r}, want it once")
        return text.replace(self.old, self.new)


def read_faults() -> list[Fault]:
    rows = tomllib.loads(Path(__file__).with_name("faults.toml").read_text(encoding="utf-8"))
    return [Fault(name, **{**row, "tests": tuple(row["tests"])}) for name, row in rows.items()]
