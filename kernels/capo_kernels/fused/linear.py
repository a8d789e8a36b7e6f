"""The GEMMs of a linear head, a chunk of tokens at a time.

    logits = hidden weight^T (+ bias)  ->  the row kernel, in place on the chunk  ->  dhidden = dlogits weight
                                                                                     dweight += dlogits^T hidden

A loss takes these three, all in forward. Log-probs alone get their derivatives only after the whole loss: their
backward forms the logits again, which makes four.

Letters: T packed tokens, R rows to compute, H hidden, V vocabulary, c rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Matmuls:
    """The three GEMMs of a head over some rows of `hidden`, chunk by chunk; dweight and dbias sum up in float32.

    No more than one [chunk, V] of logits is alive: the buffer is used again. `weight_R`: the rows' weights in the loss,
    None where none is 0.
    """

    def __init__(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        weight_R: Tensor | None,
        rows_R: Tensor | None,
        chunk: int,
        wide_logits: bool,
        needs: Sequence[bool],
    ) -> None:
        self.hidden_TH, self.weight_R, self.rows_R = hidden_TH, weight_R, rows_R
        self.size = hidden_TH.shape[0] if rows_R is None else rows_R.shape[0]
        self.chunk = min(chunk, max(self.size, 1))
        self.weight_VH, self.bias_V = weight_VH, bias_V
        dtype = torch.float32 if wide_logits else hidden_TH.dtype
        self.buffer_cV = hidden_TH.new_empty(self.chunk, weight_VH.shape[0], dtype=dtype)
        # A GPU multiplies narrow numbers into wide ones; on a CPU the head is widened, once.
        self.head_VH = weight_VH if weight_VH.is_cuda else weight_VH.to(dtype)
        # Rows that are left out have gradient 0.
        fresh = torch.empty_like if rows_R is None else torch.zeros_like
        self.dhidden_TH = fresh(hidden_TH, memory_format=torch.contiguous_format) if needs[0] else None
        zeros = partial(torch.zeros_like, dtype=torch.float32, memory_format=torch.contiguous_format)
        self.dweight_VH = zeros(weight_VH) if needs[1] else None
        self.dbias_V = zeros(bias_V) if needs[2] and bias_V is not None else None

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows of the R, their hidden states [c, H], their logits [c, V])."""
        for start in range(0, self.size, self.chunk):
            rows = slice(start, min(start + self.chunk, self.size))
            hidden_cH = self._hidden(rows)
            yield rows, hidden_cH, self._logits(hidden_cH)

    def _hidden(self, rows: slice) -> Tensor:
        hidden_cH = self.hidden_TH[rows] if self.rows_R is None else self.hidden_TH[self.rows_R[rows]]
        if self.weight_R is None:
            return hidden_cH
        # Gradient 0 times the NaN that a row of weight 0 may hold would be NaN in dweight.
        return hidden_cH.where((self.weight_R[rows] != 0).unsqueeze(1), 0)

    def _logits(self, hidden_cH: Tensor) -> Tensor:
        logits_cV = self.buffer_cV[: hidden_cH.shape[0]]
        if self.bias_V is not None and self.bias_V.dtype == logits_cV.dtype:
            return torch.addmm(self.bias_V, hidden_cH, self.head_VH.T, out=logits_cV)
        matmul(hidden_cH, self.head_VH.T, out=logits_cV)
        return logits_cV if self.bias_V is None else logits_cV.add_(self.bias_V)

    def backward(self, rows: slice, hidden_cH: Tensor, dlogits_cV: Tensor) -> None:
        if self.dbias_V is not None:
            self.dbias_V += dlogits_cV.sum(0, dtype=torch.float32)
        dlogits_cV = dlogits_cV.to(self.weight_VH.dtype)
        if self.dhidden_TH is not None:
            dhidden_cH = self.dhidden_TH[rows] if self.rows_R is None else torch.empty_like(hidden_cH)
            matmul(dlogits_cV, self.weight_VH, out=dhidden_cH)
            if self.rows_R is not None:
                self.dhidden_TH[self.rows_R[rows]] = dhidden_cH
        if self.dweight_VH is not None:
            accumulate(self.dweight_VH, dlogits_cV.T, hidden_cH)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """By hidden, weight and bias in their dtypes; empty where not needed."""
        found = (self.dhidden_TH, self.dweight_VH, self.dbias_V)
        dtype = self.hidden_TH.dtype
        dhidden_TH, dweight_VH, dbias_V = (self.hidden_TH.new_empty(0) if x is None else x.to(dtype) for x in found)
        return dhidden_TH, dweight_VH, dbias_V


# Every product is written with `out`, which autocast leaves alone: forward and backward see the same dtypes.


def matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right, out in the inputs' dtype or in float32."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        torch.mm(left.float(), right.float(), out=out)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, total in float32."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.float(), right.float())


def trained_rows(weight_T: Tensor | None, rows: Tensor | None) -> tuple[Tensor | None, bool]:
    """The rows to compute, None for all; and whether it is known that all of them have a weight. On a CPU the weights
    say both (they are 0 outside `rows`); on a device reading them would stop the host."""
    if weight_T is None or weight_T.device.type != "cpu":
        return rows, weight_T is None
    rows = weight_T.nonzero().squeeze(1)
    return None if rows.shape[0] == weight_T.shape[0] else rows, True


def take(x: Tensor | None, rows: Tensor | None) -> Any:
    return x if x is None or rows is None else x[rows]
