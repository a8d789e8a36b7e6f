"""The CUDA row kernels as nvcc built them: registers, stack, instructions. With more of these they would no longer be
bound by memory."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="cuobjdump comes with Triton's wheel")

from bench.kernels.cuda_resources import LIBRARY, Variant, kept, table, variants

TOLERANCE = 1.02
"""Of a count: another nvcc orders and folds a little otherwise."""


@pytest.fixture(scope="module")
def built() -> list[Variant]:
    if not LIBRARY.exists():
        pytest.skip(LIBRARY.with_suffix(".missing").read_text())
    return variants()


def test_no_variant_is_worse_than_the_table_that_is_kept(built) -> None:
    """`python -m bench.kernels.cuda_resources --keep` writes it."""
    assert [each.name for each in built] == [each.name for each in kept()]
    counts = ("sums", "gradient", "entropy", "row")
    worse = [
        now
        for now, before in zip(built, kept(), strict=True)
        if any(getattr(now, name) > getattr(before, name) * TOLERANCE for name in counts)
    ]
    assert not worse, f"\n{table(worse)}"


def test_nothing_spills(built) -> None:
    """A stack is memory traffic that the bounds don't count."""
    assert not [each for each in built if each.stack]


def test_two_blocks_fit_on_a_multiprocessor_however_their_warps_fall(built) -> None:
    """The warps of a block are spread over four schedulers of 16,384 registers, from any of them on."""
    for each in built:
        warps = int(each.shape.split("x")[0]) // 32 + 1
        most = 2 * -(-warps // 4)
        assert most * 32 * (-(-each.registers // 8) * 8) <= 16_384, each


def test_both_loops_of_even_rows_take_12_instructions_an_element(built) -> None:
    """By default, of 16 bits, without softcap and slope of the entropy."""
    usual = [each for each in built if each.rows == "even" and each.dtype != "float32" and each.shape == "192x4"]
    assert len(usual) == 6
    assert all(each.sums + each.gradient <= 12 for each in usual)
