"""Loops of a compiled CUDA kernel: instructions that a thread issues in each, from the output of cuobjdump.

A kernel becomes a graph of basic blocks. Of all paths of a loop from its head back to it, the one with the most
exponentials is taken as the path of a row; of equals, the shortest. Inner loops are counted separately. This leaves out
retries of a wait, slow paths of divisions and rarely taken branches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
EXPONENTIAL = "MUFU.EX2"


@dataclass(frozen=True)
class Instruction:
    address: int
    guarded: bool
    """True if a predicate decides whether it runs."""
    name: str
    operands: str

    @cached_property
    def target(self) -> int | None:
        """Address of a branch's target; None for other instructions."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands) if self.name.startswith("BRA") else None
        return int(found[1], 16) if found else None

    @cached_property
    def falls_through(self) -> bool:
        """True if execution may continue at the next instruction."""
        if self.name.split(".")[0] in ("EXIT", "RET"):
            return self.guarded
        return self.target is None or self.guarded or "P" in self.operands or ".DIV" in self.name


@dataclass(frozen=True)
class Path:
    """A path through the graph; paths are compared by exponentials, then by length."""

    exponentials: int = 0
    instructions: int = 0
    loads: int = 0
    """Loads of 16 bytes from shared memory."""

    def then(self, other: Path) -> Path:
        return Path(
            self.exponentials + other.exponentials,
            self.instructions + other.instructions,
            self.loads + other.loads,
        )

    @property
    def rank(self) -> tuple[int, int]:
        return self.exponentials, -self.instructions


@dataclass
class Loop:
    head: int
    blocks: set[int]
    path: Path = field(default_factory=Path)
    computes: bool = False
    """True if it, or a loop inside it, has exponentials."""


@dataclass
class Kernel:
    instructions: list[Instruction]

    @cached_property
    def blocks(self) -> dict[int, list[Instruction]]:
        """Basic blocks by the address of their first instruction."""
        starts = {self.instructions[0].address}
        for one, following in zip(self.instructions, self.instructions[1:], strict=False):
            if one.target is not None:
                starts.add(one.target)
            if one.target is not None or not one.falls_through:
                starts.add(following.address)
        found: dict[int, list[Instruction]] = {}
        for each in self.instructions:
            if each.address in starts:
                found[start := each.address] = []
            found[start].append(each)
        return found

    @cached_property
    def following(self) -> dict[int, list[int]]:
        starts = list(self.blocks)
        found = {}
        for start, after in zip(starts, [*starts[1:], None], strict=True):
            last = self.blocks[start][-1]
            nexts = [last.target, after if last.falls_through else None]
            found[start] = [each for each in nexts if each is not None]
        return found

    @cached_property
    def order(self) -> list[int]:
        """Blocks in reverse postorder: each before its successors, except along back edges."""
        entry = next(iter(self.blocks))
        stack, seen, done = [(entry, iter(self.following[entry]))], {entry}, []
        while stack:
            block, nexts = stack[-1]
            for each in nexts:
                if each not in seen:
                    seen.add(each)
                    stack.append((each, iter(self.following[each])))
                    break
            else:
                done.append(block)
                stack.pop()
        return done[::-1]

    @cached_property
    def place(self) -> dict[int, int]:
        return {block: i for i, block in enumerate(self.order)}

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops, inner before outer, each with its path."""
        place = self.place
        before: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for each in self.following[block]:
                before[each].append(block)
        found: dict[int, Loop] = {}
        for block in self.order:
            for head in self.following[block]:
                if place[head] <= place[block]:
                    loop = found.setdefault(head, Loop(head, {head}))
                    _add_predecessors(block, loop.blocks, before)
        loops = sorted(found.values(), key=lambda loop: len(loop.blocks))
        for loop in loops:
            inside = [other for other in loops if other.head != loop.head and other.blocks < loop.blocks]
            loop.path = self._best_path(loop, inside)
            loop.computes = loop.path.exponentials > 0 or any(other.computes for other in inside)
        return loops

    def _best_path(self, loop: Loop, inside: list[Loop]) -> Path:
        """Best path from the head back to it. Blocks of inner loops that compute exponentials cost nothing."""
        apart = {block for other in inside if other.computes for block in other.blocks}
        best: dict[int, Path] = {loop.head: Path()}
        ends = []
        place = self.place
        for block in (each for each in self.order if each in loop.blocks and each in best):
            path = best[block] if block in apart else best[block].then(_cost(self.blocks[block]))
            for each in self.following[block]:
                if each == loop.head:
                    ends.append(path)
                elif each in loop.blocks and place[each] > place[block]:
                    best[each] = max(best.get(each, path), path, key=lambda way: way.rank)
        return max(ends, key=lambda way: way.rank)


def kernels(sass: str) -> dict[str, Kernel]:
    """Kernels by mangled name, from the text of `cuobjdump -sass`."""
    found = {}
    for part in re.split(r"^\s*Function : ", sass, flags=re.MULTILINE)[1:]:
        lines = LINE.findall(part)
        code = [Instruction(int(at, 16), bool(guard), name, rest.strip()) for at, guard, name, rest in lines]
        found[part.split(maxsplit=1)[0]] = Kernel(code)
    return found


def _add_predecessors(block: int, blocks: set[int], before: dict[int, list[int]]) -> None:
    open_blocks = [block]
    while open_blocks:
        if (each := open_blocks.pop()) not in blocks:
            blocks.add(each)
            open_blocks.extend(before[each])


def _cost(block: list[Instruction]) -> Path:
    names = [each.name for each in block if each.name != "NOP"]
    loads = sum(name.startswith("LDS") and name.endswith(".128") for name in names)
    return Path(sum(name == EXPONENTIAL for name in names), len(names), loads)
