"""Resources of the CUDA row kernels as nvcc built them: registers, stack, instructions. With more, the kernels would no
longer be bound by memory."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="cuobjdump comes with Triton's wheel")

from bench.kernels.cuda_resources import LIBRARY, Variant, kept, table, variants

TOLERANCE = 1.02
"""Factor on a count: another nvcc orders and folds instructions slightly differently."""


@pytest.fixture(scope="module")
def built() -> list[Variant]:
    if not LIBRARY.exists():
        pytest.skip(LIBRARY.with_suffix(".missing").read_text())
    return variants()


def test_no_variant_is_worse_than_in_the_committed_table(built) -> None:
    """`python -m bench.kernels.cuda_resources --keep` writes the table."""
    assert [each.name for each in built] == [each.name for each in kept()]
    counts = ("sums", "gradient", "entropy", "row")
    worse = [
        now
        for now, before in zip(built, kept(), strict=True)
        if any(getattr(now, name) > getattr(before, name) * TOLERANCE for name in counts)
    ]
    assert not worse, f"\n{table(worse)}"


def test_nothing_spills(built) -> None:
    """A stack is memory traffic that the bounds do not count."""
    assert not [each for each in built if each.stack]


def test_two_blocks_fit_on_a_multiprocessor_for_any_placement_of_warps(built) -> None:
    """The warps of a block are spread over four schedulers with 16,384 registers each, starting at any scheduler."""
    for each in built:
        warps = int(each.shape.split("x")[0]) // 32 + 1
        most = 2 * -(-warps // 4)
        assert most * 32 * (-(-each.registers // 8) * 8) <= 16_384, each


def test_both_loops_of_even_rows_take_12_instructions_per_element(built) -> None:
    """For the default shape, 16-bit logits, no softcap and no entropy gradient."""
    defaults = [each for each in built if each.rows == "even" and each.dtype != "float32" and each.shape == "192x4"]
    assert len(defaults) == 6
    assert all(each.sums + each.gradient <= 12 for each in defaults)
