"""The Triton kernels as shipped, compiled for sm_90 on any machine: a kernel that would spill fails here."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bench.kernels.triton_resources import WIDE, Compiled, compiled_launches, table

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
    assert {each.case for each in vectors if each.copy != 16} == {"float32 1"}  # one block has none ahead
