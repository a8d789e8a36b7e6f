"""All-to-all exchange of host tensors between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


class Exchange:
    """Exchange between the ranks of a process group. Its methods are collectives, called in the same order on each."""

    def __init__(self, group: Any = None) -> None:
        """group: None means the default process group."""
        self._group: Any = default_group() if group is None else group
        self.rank, self.count = self._group.rank(), self._group.size()
        self.sent = 0
        """Bytes that this rank has sent to others."""

    def deal(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The parts that each rank sends to this one. parts: [n, ...] per receiver, of one dtype and width on all."""
        counts = torch.tensor([len(part) for part in parts])
        found = torch.empty_like(counts)
        self._all_to_all(found, counts, [1] * self.count, [1] * self.count)
        taken = found.tolist()
        whole = torch.cat(list(parts))
        received = whole.new_empty(sum(taken), *whole.shape[1:])
        self._all_to_all(received, whole, taken, counts.tolist())
        return list(received.split(taken))

    def deal_rows(self, parts: Sequence[Sequence[Sequence[float]]], dtype: torch.dtype) -> list[torch.Tensor]:
        """Rows of any length that each rank sends to this one, in the order of senders. parts: rows per receiver."""
        lengths = self.deal([torch.tensor(list(map(len, rows)), dtype=torch.int64) for rows in parts])
        values = self.deal([end_to_end(rows, dtype) for rows in parts])
        return list(torch.cat(values).split(torch.cat(lengths).tolist()))

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """The concatenated rows of all ranks, on every rank; for small data."""
        return torch.cat(self.deal([rows] * self.count))

    def to_first(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """The rows of each rank on the first one; no rows on the others."""
        return self.deal([rows if rank == 0 else rows[:0] for rank in range(self.count)])

    def bytes_to_first(self, data: bytes) -> list[bytes]:
        """The bytes of each rank on the first one; none on the others."""
        return [bytes_of(part) for part in self.to_first(bytes_tensor(data))]

    def _all_to_all(
        self, received: torch.Tensor, sent: torch.Tensor, taken: Sequence[int], given: Sequence[int]
    ) -> None:
        to_others = sum(given) - given[self.rank]
        self.sent += to_others * sent[:1].nbytes
        self._group.alltoall_base(received, sent, list(taken), list(given)).wait()


def default_group() -> Any:
    """The process group of all ranks of this rank's role."""
    return dist.group.WORLD


def bytes_tensor(data: bytes) -> torch.Tensor:
    """A copy of the bytes as uint8 [n]."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Inverse of `bytes_tensor`."""
    return tensor.numpy().tobytes()


def table(rows: Sequence[Sequence[float]], dtype: torch.dtype, width: int) -> torch.Tensor:
    """[rows, width]; `rows` may be empty."""
    return torch.tensor(rows, dtype=dtype).reshape(-1, width)


def end_to_end(columns: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """[T], the concatenated columns. Each is converted separately, so that no list of all tokens is made."""
    return torch.cat([torch.empty(0, dtype=dtype), *(torch.tensor(each, dtype=dtype) for each in columns)])
