"""The GEMMs of a linear head, a chunk of tokens at a time.

    logits = hidden weight^T (+ bias)  ->  the row kernel, in place on the chunk  ->  dhidden = dlogits weight
                                                                                     dweight += dlogits^T hidden

A loss computes these three, all in forward. For log-probs alone the derivatives are known only after the whole loss:
backward computes the logits again, a fourth GEMM.

Letters: T packed tokens, R rows to compute, H hidden, V vocabulary, c rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..chunks import chunk_rows, on_gpu


class Matmuls:
    """The three GEMMs of a head over some rows of `hidden`, chunk by chunk.

    One buffer [chunk, V] of logits is reused. A single chunk writes dweight in the weight's dtype; with several, the
    first writes it in float32, the others add to it, and one pass converts it: no cuBLAS GEMM adds to float32 and
    writes another dtype. dbias is summed in float32. `weight_R`: the rows' loss weights, None if none is 0; `chunk`: as
    passed by the caller of the package.
    """

    def __init__(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        weight_R: Tensor | None,
        rows_R: Tensor | None,
        chunk: int | None,
        wide_logits: bool,
        needs: Sequence[bool],
    ) -> None:
        self.hidden_TH, self.weight_R, self.rows_R = hidden_TH, weight_R, rows_R
        self.weight_VH, self.bias_V = weight_VH, bias_V
        self.size = hidden_TH.shape[0] if rows_R is None else rows_R.shape[0]
        dtype = torch.float32 if wide_logits else hidden_TH.dtype
        self.chunk = chunk_rows(self.size, weight_VH, dtype, chunk, needs[1])
        self.buffer_cV = hidden_TH.new_empty(self.chunk, weight_VH.shape[0], dtype=dtype)
        # A GPU multiplies bfloat16 inputs into float32 outputs; on a CPU the head is converted once.
        self.head_VH = weight_VH if on_gpu(weight_VH) else weight_VH.to(dtype)
        # Rows that are left out have gradient 0.
        fresh = torch.empty_like if rows_R is None else torch.zeros_like
        self.dhidden_TH = fresh(hidden_TH, memory_format=torch.contiguous_format) if needs[0] else None
        self.dweight_VH = self._new_dweight() if needs[1] else None
        self.dbias_V = torch.zeros_like(bias_V, dtype=torch.float32) if needs[2] and bias_V is not None else None

    def _new_dweight(self) -> Tensor:
        if self.size == 0:
            return torch.zeros_like(self.weight_VH, memory_format=torch.contiguous_format)
        dtype = self.weight_VH.dtype if self.size <= self.chunk else torch.float32
        return torch.empty_like(self.weight_VH, dtype=dtype, memory_format=torch.contiguous_format)

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
            form = matmul if rows.start == 0 else accumulate
            form(dlogits_cV.T, hidden_cH, self.dweight_VH)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by hidden, weight and bias in their dtypes; empty where not needed."""
        found = (self.dhidden_TH, self.dweight_VH, self.dbias_V)
        dtype = self.hidden_TH.dtype
        dhidden_TH, dweight_VH, dbias_V = (self.hidden_TH.new_empty(0) if x is None else x.to(dtype) for x in found)
        return dhidden_TH, dweight_VH, dbias_V


# Autocast ignores products written with `out`, so forward and backward use the same dtypes.


def matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right, out in the inputs' dtype or in float32."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif on_gpu(left):
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        torch.mm(left.float(), right.float(), out=out)


def accumulate(left: Tensor, right: Tensor, total: Tensor) -> None:
    """total += left @ right, total in the inputs' dtype or in float32."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif on_gpu(left):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.float(), right.float())


def trained_rows(weight_T: Tensor | None, rows: Tensor | None) -> tuple[Tensor | None, bool]:
    """The rows to compute (None: all), and whether all of them are known to have non-zero weight. On a CPU both are
    read from the weights (0 outside `rows`); on a device reading them would need a host sync."""
    if weight_T is None or weight_T.device.type != "cpu":
        return rows, weight_T is None
    rows = weight_T.nonzero().squeeze(1)
    return None if rows.shape[0] == weight_T.shape[0] else rows, True


def take(x: Tensor | None, rows: Tensor | None) -> Any:
    return x if x is None or rows is None else x[rows]
