"""Resources of the Triton row kernels compiled for sm_90, without a GPU: registers, stack and shared memory per launch.

The unchanged launchers run on the CPU under a driver that compiles for sm_90 and launches nothing. The figures come
from the cuobjdump of the Triton wheel.

    python -m bench.kernels.triton_resources        # the table
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from capo_kernels.rows import NORMS, TERMS, CreditArguments, Modes, Results, Scalars, SequenceArguments, TokenArguments


class Compiled(NamedTuple):
    kernel: str
    case: str
    block: str
    """Vectors x elements per vector."""
    warps: int
    registers: int
    """Registers per thread."""
    stack: int
    """Bytes per thread, at least the spilled registers."""
    shared: int
    """Bytes per program."""
    copy: int
    """Bytes of a thread's asynchronous loads; 0: it has none."""

    @property
    def programs(self) -> int:
        """Programs resident on an sm_90 multiprocessor: 64 warps, 65,536 registers, 227 KiB, 1 KiB per program."""
        registers = -(-self.registers // 8) * 8
        return min(64 // self.warps, 65536 // (registers * 32 * self.warps), 227 * 1024 // (self.shared + 1024))


def compiled_launches() -> list[Compiled]:
    """Compiles in a separate process, because an interpreted Triton compiles nothing and a driver can't be replaced.
    Raises RuntimeError with that process's error, for example if the wheel has no cuobjdump."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", __spec__.name, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the kernels were not compiled:\n{done.stderr}")
    return [Compiled(*row) for row in json.loads(done.stdout)]


def table(launches: list[Compiled]) -> str:
    names = [*Compiled._fields, "programs"]
    rows = [names, *([*map(str, each), str(each.programs)] for each in launches)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


# ---- the launches: each kernel with all terms and with the fewest, each dtype, block size and row stride -------------

WIDE, ODD, NARROW, TINY = 152064, 50257, 4008, 100

LEAST = Modes(objective=0, kl_estimator=2, kl_ratio=0, is_mode=0, is_level=0)
MOST = Modes(objective=0, kl_estimator=2, kl_ratio=1, is_mode=2, is_level=0)
CISPO = Modes(objective=1, kl_estimator=0, kl_ratio=0, is_mode=1, is_level=1)


def _cases() -> Iterator[tuple[str, Any]]:
    from capo_kernels.fused.triton_rows import TritonRows

    kernels = TritonRows()
    f_T = torch.zeros(2)
    i_T = f_T.int()
    given = TokenArguments(f_T, f_T, f_T, f_T, f_T, f_T, f_T)
    bare = TokenArguments(f_T, f_T, None, None, None, None, None)
    results = Results(f_T, f_T, torch.zeros(2, len(TERMS)))

    def loss(x_TV: Tensor, tokens: TokenArguments, modes: Modes, cap: float = 0.0, grad: Tensor | None = None) -> Any:
        scalars = Scalars(0.8, 1.2, inf, 0.1, 0.1, 0.0, 2.0, 1.0, cap)
        return lambda: kernels.loss(x_TV, i_T, tokens, modes, scalars, results, grad)

    def rows(vocab: int, dtype: torch.dtype, stride: int | None = None) -> Tensor:
        return torch.zeros(2, stride or vocab, dtype=dtype)[:, :vocab]

    def logprobs(x_TV: Tensor, cap: float = 0.0) -> Any:
        return lambda: kernels.logprobs(x_TV, i_T, None, 1.0, cap)

    def dlogits(x_TV: Tensor, cap: float = 0.0) -> Any:
        return lambda: kernels.dlogits(x_TV, i_T, f_T, f_T, 1.0, cap, x_TV)

    bfloat16, float16, float32 = torch.bfloat16, torch.float16, torch.float32
    for dtype in (bfloat16, float32):
        name = str(dtype).removeprefix("torch.")
        wide_TV, odd_TV = rows(WIDE, dtype), rows(ODD, dtype)
        yield f"{name} {WIDE} ppo", loss(wide_TV, bare, LEAST, grad=wide_TV)
        yield f"{name} {ODD} softcap, all terms", loss(odd_TV, given, MOST, 30.0, odd_TV)
        yield f"{name} scaled", lambda x_TV=odd_TV: kernels.scale_(x_TV, torch.zeros(()))
    wide_TV = rows(WIDE, bfloat16)
    yield f"bfloat16 {WIDE} softcap, all terms", loss(wide_TV, given, MOST, 30.0, wide_TV)
    strided_TV = rows(ODD, bfloat16, ODD + 1)
    yield f"bfloat16 {ODD}, strides apart", loss(strided_TV, given, CISPO, grad=rows(ODD, bfloat16))
    yield f"bfloat16 {WIDE}", logprobs(wide_TV)
    yield f"float32 {ODD} softcap", logprobs(rows(ODD, float32), 30.0)
    yield f"bfloat16 {WIDE}", dlogits(wide_TV)
    yield f"float32 {ODD} softcap", dlogits(rows(ODD, float32), 30.0)
    yield f"bfloat16 {NARROW} no gradient", loss(rows(NARROW, bfloat16), given, CISPO)
    yield f"float16 {TINY} cispo", loss(rows(TINY, float16), given, CISPO, grad=rows(TINY, float16))
    yield "float32 1", loss(rows(1, float32), given, LEAST, grad=rows(1, float32))
    of_T = SequenceArguments(f_T, i_T, f_T, f_T, f_T)
    yield "both", lambda: kernels.sequences(of_T, f_T, f_T)
    yield "all", lambda: kernels.summary(f_T, results, True, True, f_T, f_T)
    for norm in range(len(NORMS)):
        credit = CreditArguments(f_T.bool(), f_T, f_T, i_T.long(), i_T, None, f_T, 2.0, 1.0, 0.1, norm)
        yield NORMS[norm], lambda credit=credit: kernels.advantages(credit, f_T)
    given_T = credit._replace(stats=torch.zeros(1, 4))
    yield "statistics given", lambda: kernels.advantages(given_T, f_T)


# ---- compiling -------------------------------------------------------------------------------------------------------


class _Hopper:
    """The methods of a driver that Triton calls before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def _compile() -> Iterator[Compiled]:
    try:
        import triton
    except ModuleNotFoundError:
        sys.exit("triton: not installed, wanted the package triton, whose compiler makes these figures")
    from triton.runtime.jit import JITFunction

    triton.runtime.driver.set_active(_Hopper())
    launch, launched = JITFunction.run, []

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launched.append((launch(self, *args, grid=grid, warmup=True, **options), options))

    JITFunction.run = only_compile
    for case, call in _cases():
        call()
        while launched:
            yield _figures(case, *launched.pop(0))


def _figures(case: str, kernel: Any, options: dict[str, Any]) -> Compiled:
    import triton

    use = _resources(kernel.asm["cubin"], triton.knobs.nvidia.cuobjdump.path)
    block = f"{options.get('N', '')}x{options.get('W', options.get('BLOCK', 1))}"
    shared = max(use["SHARED"], kernel.metadata.shared)
    copy = max((int(size, 16) for size in re.findall(r"cp\.async\.c.*?, 0x(\w+)", kernel.asm["ptx"])), default=0)
    figures = (kernel.metadata.num_warps, use["REG"], use["STACK"], shared, copy)
    return Compiled(kernel.name.strip("_"), case, block, *figures)


def _resources(cubin: bytes, cuobjdump: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([cuobjdump, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", done.stdout)}
    if len(found) != 3:
        raise RuntimeError(f"cuobjdump printed no resource usage: {done.stdout}")
    return found


if __name__ == "__main__":
    results = list(_compile())
    print(json.dumps(results) if "--json" in sys.argv else table(results))
