"""The Triton kernels as shipped, compiled for sm_90 on any machine: a kernel that would spill fails here."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from implementations import INTERPRETED
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from bench.kernels.triton_resources import WIDE, Compiled, compiled_launches, table
from capo_kernels.fused.triton_tokens import TritonTokens
from capo_kernels.rows import CreditArguments, Results, SequenceArguments

ROWS = ("loss", "logprobs", "dlogits", "scale")
TOKENS = ("moments", "advantages", "sequences", "summary")


@pytest.fixture(scope="module")
def launches() -> list[Compiled]:
    found = compiled_launches()
    print(f"\n{table(found)}")
    return found


def test_every_kernel_is_launched(launches):
    assert {each.kernel for each in launches} == {*ROWS, *TOKENS}


def test_no_launch_spills(launches):
    """A stack is memory traffic that the bounds do not count."""
    spilled = [each for each in launches if each.stack != 0]
    assert not spilled, f"\n{table(spilled)}"


def test_every_launch_fits_on_a_multiprocessor(launches):
    """Also on sm_86 and sm_89, where a program has at most 99 KiB of shared memory."""
    assert all(each.programs >= 1 and each.shared <= 99 * 1024 for each in launches)


def test_a_multiprocessor_runs_one_wide_row_at_a_time(launches):
    """The rows are read a second time from L2, which two rows per multiprocessor would not fit."""
    read_twice = [each for each in launches if each.kernel in ("loss", "dlogits") and f"bfloat16 {WIDE}" in each.case]
    assert read_twice
    assert all(each.programs == 1 for each in read_twice)


def test_rows_that_are_read_once_run_four_at_a_time(launches):
    read_once = [each for each in launches if each.kernel == "logprobs" and f"bfloat16 {WIDE}" in each.case]
    assert read_once
    assert all(each.warps == 8 and each.programs >= 4 for each in read_once)


def test_rows_are_read_ahead_in_vectors(launches):
    """Also rows of whole vectors whose length 16 does not divide, which Triton takes for unaligned."""
    vectors = [each for each in launches if each.kernel in ROWS[:3] and not each.block.endswith("x1")]
    assert vectors
    assert all(each.copy == 16 for each in vectors)


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
def test_batches_of_other_sizes_compile_nothing_over_tokens(monkeypatch):
    """Triton would compile a kernel again where a count is 1 or a multiple of 16."""
    compiled: dict[str, set[str]] = {}

    def record(kernel, *args, grid, warmup, **options):
        bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
        compiled.setdefault(kernel.__name__, set()).add(str(bind(*args, **options)[1]))

    monkeypatch.setattr(JITFunction, "run", record)
    for tokens, sequences in ((17, 3), (16, 16), (1, 1)):
        _launch_over_tokens(tokens, sequences)
    assert {name: len(variants) for name, variants in compiled.items()} == {
        "_moments": 1,
        "_advantages": 2,  # with and without given statistics
        "_sequences": 1,
        "_summary": 1,
    }


def _launch_over_tokens(tokens: int, sequences: int) -> None:
    kernels, f_T, f_B, ends = (
        TritonTokens(),
        torch.zeros(tokens),
        torch.zeros(sequences),
        torch.zeros(sequences + 1).int(),
    )
    for stats in (None, torch.zeros(sequences, 4)):
        kernels.advantages(CreditArguments(f_T.bool(), f_T, f_B, f_B.int(), ends, stats, f_T, 2.0, 1.0, 0.1, 0), f_T)
    kernels.sequences(SequenceArguments(f_T, ends, f_T, f_T, f_T), f_T, f_T)
    kernels.summary(f_T, Results(f_T, f_T, torch.zeros(tokens, 8)), True, True, f_T, f_T)
