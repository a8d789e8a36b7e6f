"""The rollouts of a run -> those that the page shows, and counts of agreement of outcome and process in all of them.

A run keeps more text than fits a page, so rollouts are drawn. Each of three pools has a share of the room; unused room
goes to the others:

    disagreement  1/2   outcome and process contradict each other, "right answer, wrong step" first
    ends          1/4   the other rollouts of the first and the last step on disk
    others        1/4   all others

Inside a pool the order is a hash of (seed, step, group, sample): the same run gives the same page.
"""

from __future__ import annotations

import gzip
import heapq
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capo_fast.runtime.digest import seed_of
from capo_fast.runtime.files import RecordError, finite
from capo_fast.verify.functions import is_right

KINDS = {
    "right-flagged": "right answer, wrong step",
    "wrong-sound": "wrong answer, no wrong step",
    "wrong-flagged": "wrong answer, wrong step",
    "right-sound": "right answer, no wrong step",
    "right": "right answer, no valid critique",
    "wrong": "wrong answer, no valid critique",
    "unchecked": "answer not checked (time-out)",
}
"""Combinations of outcome and process, the contradictions first."""
DISAGREEMENTS = ("right-flagged", "wrong-sound")
SHARES = {"disagreement": 0.5, "ends": 0.25, "others": 0.25}
RULE = (
    "Half of the room goes to rollouts in which outcome and process disagree (right answer with a wrong step first), a "
    "quarter to others of the first and the last step on disk, a quarter to the rest; room that a part leaves goes to "
    "the others. Within each part the choice is random with seed {seed}."
)


@dataclass(frozen=True)
class Room:
    """The room for rollouts in a page."""

    rollouts: int
    bytes: int
    """Size as JSON."""


@dataclass
class CreditMap:
    """One run's rollouts in the page."""

    shown: list[dict[str, Any]] = field(default_factory=list)
    """By step, group, sample; the fields are those of `entry`."""
    total: int = 0
    """Rollouts on disk."""
    unreadable: int = 0
    """Rollouts on disk without the texts of their steps (runs of an older version)."""
    kinds: dict[int, Counter[str]] = field(default_factory=dict)
    """By step: the count of each kind, over all rollouts on disk."""


def read_credit_map(
    files: Mapping[int, Path], room: Room, seed: int, watch: Callable[[Iterable[int]], Iterable[int]] = iter
) -> CreditMap:
    """Reads every rollout once and keeps only as many as fit. Raises RecordError for a damaged file.

    `watch` wraps the steps and may show progress.
    """
    found = CreditMap()
    pools = {name: Pool(room) for name in SHARES}
    ends = (min(files), max(files)) if files else ()
    for step in watch(files):
        try:
            for row, judged, group in _judged(files[step], step, found):
                pool = pools["disagreement" if judged in DISAGREEMENTS else "ends" if step in ends else "others"]
                order = _order(judged, seed, step, row["group"], row["sample"])
                if pool.is_open(order):
                    pool.add(order, entry(row, step, judged) | group)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{files[step]} is damaged: a row is not a rollout: {error!r}") from error
    found.shown = sorted(draw(pools, room), key=lambda each: (each["step"], each["group"], each["sample"]))
    return found


def _judged(path: Path, step: int, found: CreditMap) -> Iterator[tuple[dict[str, Any], str, dict[str, int]]]:
    """The step's rows that the page can show, each with its kind and its group's figures; counts all in `found`."""
    rows = list(_rows(path))
    readable = [row for row in rows if "steps" in row]
    kinds = [kind(row["outcome"], row["votes"], row["critiques"]) for row in readable]
    found.total += len(rows)
    found.unreadable += len(rows) - len(readable)
    found.kinds[step] = Counter(kinds)
    sizes = Counter(row["group"] for row in readable)
    right = Counter(row["group"] for row, judged in zip(readable, kinds, strict=True) if judged.startswith("right"))
    for row, judged in zip(readable, kinds, strict=True):
        yield row, judged, {"group_size": sizes[row["group"]], "group_right": right[row["group"]]}


def entry(row: Mapping[str, Any], step: int, judged: str) -> dict[str, Any]:
    """A line of a rollouts file in the page's form: token counts by step, rounded numbers, its kind."""
    starts = [at for at, start in enumerate(row["step_starts"]) if start]
    ends = [*starts[1:], len(row["step_starts"])]
    kept = ("group", "sample", "prompt_id", "problem", "answer", "steps", "trained", "stop_reason", "critiques")
    return {
        "step": step,
        "kind": judged,
        **{key: row[key] for key in kept},
        "extracted": row.get("extracted"),  # runs of an older version have none
        "outcome": _short(row["outcome"]),
        "reward": _short(row["reward"]),
        "votes": [_short(vote) for vote in row["votes"]],
        "advantages": [_short(advantage) for advantage in row["advantages"]],
        "tokens": [end - start for start, end in zip(starts, ends, strict=True)],
    }


def kind(outcome: float | None, votes: Sequence[float], critiques: Sequence[Mapping[str, Any]]) -> str:
    """One of `KINDS`. An answer is right by `is_right`, a step wrong from a vote of 0.5 on.

    >>> kind(1.0, [0.0, 1.0], [{"abstained": False}]), kind(1.0, [0.0, 0.0], [{"abstained": True}])
    ('right-flagged', 'right')
    """
    if outcome is None:
        return "unchecked"
    answer = "right" if is_right(outcome) else "wrong"
    if all(critique["abstained"] for critique in critiques):
        return answer
    return f"{answer}-flagged" if any(vote >= 0.5 for vote in votes) else f"{answer}-sound"


class Pool:
    """The first entries in sort order, up to the first that does not fit; entries may be added in any order."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0
        self._heap: list[tuple[tuple[int, ...], int, dict[str, Any]]] = []  # the last in order on top
        self._end: tuple[int, ...] | None = None  # the first in order of those that did not fit

    def is_open(self, order: tuple[int, ...]) -> bool:
        """True if an entry of this order may still fit."""
        return self._end is None or _last_first(order) > self._end

    def add(self, order: tuple[int, ...], each: dict[str, Any]) -> None:
        if not self.is_open(order):
            return
        size = len(json.dumps(each)) + 2  # and the comma
        heapq.heappush(self._heap, (_last_first(order), size, each))
        self._bytes += size
        while len(self._heap) > self._room.rollouts or self._bytes > self._room.bytes:
            self._end, size, _ = heapq.heappop(self._heap)
            self._bytes -= size

    def in_order(self) -> list[tuple[int, dict[str, Any]]]:
        """(bytes, entry)"""
        return [(size, each) for _, size, each in sorted(self._heap, key=lambda item: item[0], reverse=True)]


def draw(pools: Mapping[str, Pool], room: Room) -> list[dict[str, Any]]:
    """Draws each pool's share, then pool by pool the entries that still fit."""
    waiting = {name: pool.in_order() for name, pool in pools.items()}
    drawn: list[dict[str, Any]] = []
    left, count = room.bytes, room.rollouts
    for shares in (SHARES, dict.fromkeys(SHARES, 1.0)):
        for name, share in shares.items():
            bytes_left, count_left = min(left, room.bytes * share), min(count, int(room.rollouts * share))
            while waiting[name] and count_left >= 1 and waiting[name][0][0] <= bytes_left:
                size, each = waiting[name].pop(0)
                drawn.append(each)
                bytes_left, count_left = bytes_left - size, count_left - 1
                left, count = left - size, count - 1
    return drawn


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise RecordError(f"{path} is damaged: {error}") from error


def _order(judged: str, seed: int, step: int, group: int, sample: int) -> tuple[int, ...]:
    return (judged != "right-flagged", seed_of(seed, step, group, sample), step, group, sample)


def _last_first(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-part for part in order)


def _short(number: float | None) -> float | None:
    """Rounds to four digits after the point."""
    value = finite(number)
    return None if value is None else round(value, 4)
