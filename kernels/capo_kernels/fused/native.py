"""The kernels of csrc/, libcapo_cpu and libcapo_cuda, through ctypes: pointers and sizes, no torch headers.

Letters: T tokens (rows), V vocabulary.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..rows import CreditArguments, Modes, Results, Scalars, SequenceArguments, TokenArguments
from .structs import (
    ABI,
    DTYPES,
    CCredit,
    CLogits,
    CResults,
    CSequences,
    CSpec,
    CSummary,
    CTokens,
    credit_of,
    logits_of,
    pointer,
)

LIBRARIES = Path(__file__).parents[1] / "lib"


class NativeRows(ABC):
    """The kernels of one library."""

    rows_end: tuple[Any, ...]
    """Types of the last arguments of the library's functions on rows."""
    tokens_end: tuple[Any, ...]
    """Types of the last arguments of its functions over T."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """Raises OSError if the library was not built or can't be loaded."""
        self.name = name
        self._library = _load(f"libcapo_{name}", folder or LIBRARIES)
        if self._library[f"capo_{name}_abi"]() != ABI:
            raise OSError(f"libcapo_{name} was built from other sources than this version's: install it again")
        logits, end = POINTER(CLogits), self.rows_end
        self._loss = self._function("loss", logits, POINTER(CTokens), POINTER(CSpec), POINTER(CResults), *end)
        self._logprobs = self._function("logprobs", logits, c_void_p, c_void_p, *end)
        self._dlogits = self._function("dlogits", logits, c_void_p, c_void_p, *end)
        self._advantages = self._function("advantages", POINTER(CCredit), *self.tokens_end)
        self._sequences = self._function("sequences", POINTER(CSequences), *self.tokens_end)
        self._summary = self._function("summary", POINTER(CSummary), *self.tokens_end)

    def _function(self, name: str, *arguments: Any) -> ctypes._NamedFuncPointer:
        function = self._library[f"capo_{self.name}_{name}"]
        function.argtypes, function.restype = arguments, c_int
        function.errcheck = self._check
        return function

    def logprobs(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float
    ) -> tuple[Tensor, Tensor]:
        matrix = logits_of(logits, targets, weight, temperature, softcap, None)
        logp, entropy = (logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2))
        self._run_rows(self._logprobs, logits.device, byref(matrix), pointer(logp), pointer(entropy))
        return logp, entropy

    def dlogits(
        self,
        logits: Tensor,
        targets: Tensor,
        dlogp: Tensor,
        dentropy: Tensor | None,
        temperature: float,
        softcap: float,
        grad: Tensor,
    ) -> None:
        matrix = logits_of(logits, targets, None, temperature, softcap, grad)
        self._run_rows(self._dlogits, logits.device, byref(matrix), pointer(dlogp), pointer(dentropy))

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        tokens: TokenArguments,
        modes: Modes,
        scalars: Scalars,
        results: Results,
        grad: Tensor | None,
    ) -> None:
        matrix = logits_of(logits, targets, tokens.weight, scalars.temperature, scalars.softcap, grad)
        records = CTokens(*map(pointer, tokens[1:])), CSpec(*modes, *scalars[:-2]), CResults(*map(pointer, results))
        self._run_rows(self._loss, logits.device, byref(matrix), *map(byref, records))

    def summary(self, weight: Tensor, results: Results, has_ref: bool, has_is: bool, loss: Tensor, raw: Tensor) -> None:
        inputs = map(pointer, (weight, results.entropy, results.terms))
        record = CSummary(*inputs, weight.shape[0], has_ref, has_is, loss.data_ptr(), raw.data_ptr())
        self._run_tokens(self._summary, weight.device, byref(record))

    def advantages(self, credit: CreditArguments, advantage: Tensor) -> None:
        moments = None
        if credit.stats is None:
            moments = advantage.new_empty(credit.outcome.shape[0], 3, dtype=torch.float64)
        record = credit_of(credit, moments, advantage)
        self._run_tokens(self._advantages, advantage.device, byref(record))

    def sequences(self, arguments: SequenceArguments, log_ratio: Tensor | None, importance: Tensor | None) -> None:
        sizes = arguments.weight.shape[0], arguments.cu_seqlens.shape[0] - 1
        record = CSequences(*map(pointer, (*arguments, log_ratio, importance)), *sizes)
        self._run_tokens(self._sequences, arguments.weight.device, byref(record))

    @abstractmethod
    def _run_rows(self, function: Any, device: torch.device, *arguments: Any) -> None:
        """Calls a library function with `arguments`, then those of `rows_end`."""

    @abstractmethod
    def _run_tokens(self, function: Any, device: torch.device, *arguments: Any) -> None:
        """The same with those of `tokens_end`."""

    @abstractmethod
    def _error(self, code: int) -> str:
        """Error message for a library function's non-zero result."""

    def _check(self, code: Any, *_: object) -> Any:
        """Raises RuntimeError if a library function's result is not 0."""
        if code != 0:
            raise RuntimeError(f"libcapo_{self.name}: {self._error(code)}")
        return code


class CpuRows(NativeRows):
    """libcapo_cpu: SIMD, on torch's number of threads."""

    rows_end, tokens_end = (c_int,), ()

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__("cpu", folder)
        self._library.capo_cpu_isa.restype = c_char_p
        if self.isa() not in ("avx512", "avx2", "portable"):
            raise OSError(self.isa())

    def isa(self) -> str:
        """The instruction set in use: the best of this machine, or CAPO_CPU_ISA from the environment."""
        return self._library.capo_cpu_isa().decode()

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        if device.type != "cpu":
            return f"cpu takes tensors on the CPU, not on {device.type}"
        return None if dtype in (torch.float32, torch.bfloat16) else f"cpu takes float32 and bfloat16, not {dtype}"

    def scale_(self, grad: Tensor, factor: Tensor) -> None:
        if factor.item() != 1:
            grad.mul_(factor.item())

    def _run_rows(self, function: Any, device: torch.device, *arguments: Any) -> None:
        function(*arguments, torch.get_num_threads())

    def _run_tokens(self, function: Any, device: torch.device, *arguments: Any) -> None:
        function(*arguments)

    def _error(self, code: int) -> str:
        reasons = {-2: self.isa(), -4: "no memory for a row of float32 per thread"}
        return reasons.get(code, f"error {code}")


class CudaRows(NativeRows):
    """libcapo_cuda, sm_90a, on torch's current stream. Has compiled; has never run on a GPU."""

    rows_end = tokens_end = (c_int, c_void_p)

    def __init__(self) -> None:
        super().__init__("cuda")
        self._library.capo_cuda_error.restype = c_char_p
        self._library.capo_cuda_max_vocab.restype = c_int64
        self._scale = self._function("scale", POINTER(CLogits), c_void_p, *self.rows_end)
        self._widest = {dtype: self._library.capo_cuda_max_vocab(code) for dtype, code in DTYPES.items()}

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        if device.type != "cuda":
            return f"cuda takes tensors on an NVIDIA GPU, not on {device.type}"
        if dtype not in DTYPES:
            return f"cuda takes float32, bfloat16 and float16, not {dtype}"
        if torch.cuda.get_device_capability(device) != (9, 0):
            return f"cuda is built for sm_90a, not for {torch.cuda.get_device_name(device)}"
        if vocab > self._widest[dtype]:
            return f"cuda takes rows of {dtype} up to {self._widest[dtype]} wide, not {vocab}"
        return None

    def scale_(self, grad: Tensor, factor: Tensor) -> None:
        rows = grad if grad.dim() == 2 else grad.unsqueeze(0)
        matrix = CLogits(None, pointer(rows), None, None, *rows.shape, 0, rows.stride(0), 1, 0, DTYPES[rows.dtype], 0)
        self._run_rows(self._scale, rows.device, byref(matrix), pointer(factor))

    def _run_rows(self, function: Any, device: torch.device, *arguments: Any) -> None:
        # The library makes `device` the current one, which need not be the caller's.
        with torch.cuda.device(device):
            function(*arguments, device.index, torch.cuda.current_stream().cuda_stream)

    _run_tokens = _run_rows

    def _error(self, code: int) -> str:
        error: bytes = self._library.capo_cuda_error(code)
        return error.decode()


def _load(name: str, folder: Path) -> ctypes.CDLL:
    library, reason = folder / f"{name}.so", folder / f"{name}.missing"
    if not library.exists():
        raise OSError(reason.read_text(encoding="utf-8").strip() if reason.exists() else f"{name} was not built")
    return ctypes.CDLL(str(library))
