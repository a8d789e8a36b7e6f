"""The row kernels of csrc/, libcapo_cpu and libcapo_cuda, through ctypes: pointers and sizes, no torch headers.

Letters: T tokens (rows), V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..rows import Modes, Scalars, TokenArguments

LIBRARIES = Path(__file__).parents[1] / "lib"
ABI = 1
"""CAPO_ABI of csrc/capo.h, which this file mirrors."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Logits(ctypes.Structure):
    """capo_logits."""

    _fields_ = (
        ("logits", c_void_p),
        ("grad", c_void_p),
        ("targets", c_void_p),
        ("weight", c_void_p),
        ("tokens", c_int64),
        ("vocab", c_int64),
        ("stride", c_int64),
        ("grad_stride", c_int64),
        ("temperature", c_float),
        ("softcap", c_float),
        ("dtype", c_int32),
    )


class _Tokens(ctypes.Structure):
    """capo_tokens."""

    _fields_ = tuple((name, c_void_p) for name in TokenArguments._fields if name != "weight")


class _Spec(ctypes.Structure):
    """capo_spec."""

    _fields_ = (
        *((name, c_int32) for name in Modes._fields),
        *((name, c_float) for name in Scalars._fields if name not in ("temperature", "softcap")),
    )


class NativeRows:
    """The row kernels of one library."""

    def __init__(self, name: str) -> None:
        """Raises OSError where the library was not built or can't be loaded."""
        self.name = name
        self._library = _load(f"libcapo_{name}")
        if self._library[f"capo_{name}_abi"]() != ABI:
            raise OSError(f"libcapo_{name} was built from other sources than this version's: install it again")
        tail = c_int if name == "cpu" else c_void_p
        self._loss = self._function("loss", POINTER(_Tokens), POINTER(_Spec), c_void_p, tail)
        self._logprobs = self._function("logprobs", c_void_p, c_void_p, tail)
        self._dlogits = self._function("dlogits", c_void_p, c_void_p, tail)

    def _function(self, name: str, *arguments: Any) -> ctypes._NamedFuncPointer:
        function = self._library[f"capo_{self.name}_{name}"]
        function.argtypes, function.restype = (POINTER(_Logits), *arguments), c_int
        function.errcheck = self._check
        return function

    def logprobs(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float
    ) -> tuple[Tensor, Tensor]:
        matrix = _matrix(logits, targets, weight, temperature, softcap, None)
        logp, entropy = (logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2))
        with self._launch(logits.device) as tail:
            self._logprobs(byref(matrix), _pointer(logp), _pointer(entropy), tail)
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
        matrix = _matrix(logits, targets, None, temperature, softcap, grad)
        with self._launch(logits.device) as tail:
            self._dlogits(byref(matrix), _pointer(dlogp), _pointer(dentropy), tail)

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        tokens: TokenArguments,
        modes: Modes,
        scalars: Scalars,
        terms: Tensor,
        grad: Tensor | None,
    ) -> None:
        matrix = _matrix(logits, targets, tokens.weight, scalars.temperature, scalars.softcap, grad)
        beside = _Tokens(*map(_pointer, tokens[1:]))
        spec = _Spec(*modes, *scalars[:-2])
        with self._launch(logits.device) as tail:
            self._loss(byref(matrix), byref(beside), byref(spec), _pointer(terms), tail)

    def _launch(self, device: torch.device) -> AbstractContextManager[int | None]:
        """Around a call of the library: gives the call's last argument."""
        raise NotImplementedError

    def _check(self, code: Any, *_: object) -> Any:
        """Raises RuntimeError for the result of a function of the library, unless it is 0."""
        raise NotImplementedError


class CpuRows(NativeRows):
    """libcapo_cpu: SIMD, on torch's number of threads."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self._library.capo_cpu_isa.restype = c_char_p
        if self.isa() not in ("avx512", "avx2", "portable"):
            raise OSError(self.isa())

    def isa(self) -> str:
        """The instruction set that runs: the best of this machine, or what the environment's CAPO_CPU_ISA names."""
        return self._library.capo_cpu_isa().decode()

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        if device.type != "cpu":
            return f"cpu takes tensors on the CPU, not on {device.type}"
        return None if dtype in (torch.float32, torch.bfloat16) else f"cpu takes float32 and bfloat16, not {dtype}"

    def scale_(self, grad: Tensor, factor: Tensor) -> None:
        if factor.item() != 1:
            grad.mul_(factor.item())

    def _launch(self, device: torch.device) -> AbstractContextManager[int]:
        return nullcontext(torch.get_num_threads())

    def _check(self, code: Any, *_: object) -> Any:
        if code != 0:
            raise RuntimeError(f"libcapo_cpu: error {code}")
        return code


class CudaRows(NativeRows):
    """libcapo_cuda, sm_90a, on torch's current stream. Has compiled; has never run on a GPU."""

    def __init__(self) -> None:
        super().__init__("cuda")
        self._library.capo_cuda_error.restype = c_char_p
        self._library.capo_cuda_max_vocab.restype = c_int64
        self._scale = self._function("scale", c_void_p, c_void_p)
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
        matrix = _Logits(None, _pointer(rows), None, None, *rows.shape, 0, rows.stride(0), 1, 0, DTYPES[rows.dtype])
        with self._launch(rows.device) as stream:
            self._scale(byref(matrix), _pointer(factor), stream)

    @contextmanager
    def _launch(self, device: torch.device) -> Iterator[int]:
        with torch.cuda.device(device):
            yield torch.cuda.current_stream().cuda_stream

    def _check(self, code: Any, *_: object) -> Any:
        if code != 0:
            raise RuntimeError(f"libcapo_cuda: {self._library.capo_cuda_error(code).decode()}")
        return code


def _load(name: str) -> ctypes.CDLL:
    library, reason = LIBRARIES / f"{name}.so", LIBRARIES / f"{name}.missing"
    if not library.exists():
        raise OSError(reason.read_text(encoding="utf-8").strip() if reason.exists() else f"{name} was not built")
    return ctypes.CDLL(str(library))


def _matrix(
    logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float, grad: Tensor | None
) -> _Logits:
    return _Logits(
        _pointer(logits),
        _pointer(grad),
        _pointer(targets),
        _pointer(weight),
        *logits.shape,
        logits.stride(0),
        0 if grad is None else grad.stride(0),
        temperature,
        softcap,
        DTYPES[logits.dtype],
    )


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
