"""The Triton kernels as they ship, compiled for sm_90 on any machine: what would spill on a GPU fails here."""

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


def test_every_kernel_is_among_them(launches):
    assert {each.kernel for each in launches} == {*ROWS, *TOKENS}


def test_no_launch_spills(launches):
    """A stack is memory traffic that the bounds don't count."""
    spilled = [each for each in launches if each.stack != 0]
    assert not spilled, f"\n{table(spilled)}"


def test_every_launch_fits_on_a_multiprocessor(launches):
    """Of sm_86 and sm_89 too, whose programs have at most 99 KiB of shared memory."""
    assert all(each.programs >= 1 and each.shared <= 99 * 1024 for each in launches)


def test_a_multiprocessor_holds_one_wide_row_at_a_time(launches):
    """Two rows of each would not fit in L2, out of which they are read a second time."""
    twice = [each for each in launches if each.kernel in ("loss", "dlogits") and f"bfloat16 {WIDE}" in each.case]
    assert twice
    assert all(each.programs == 1 for each in twice)


def test_four_rows_at_a_time_where_they_are_read_once(launches):
    once = [each for each in launches if each.kernel == "logprobs" and f"bfloat16 {WIDE}" in each.case]
    assert once
    assert all(each.warps == 8 and each.programs >= 4 for each in once)
