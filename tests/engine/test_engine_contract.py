"""Versions, models and folders that vLLM accepts, and checksums of slices. vLLM is never started here."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capo_fast.engine.checksum as checksums
from capo_fast.engine.base import EngineError
from capo_fast.engine.checksum import LIBRARY, checksum, place_weights, row_sums
from capo_fast.engine.tensor_parallel import check_divides, most_slices, sizes_of
from capo_fast.engine.vllm_start import check_version, installed_version, without_brackets
from capo_fast.errors import ConfigError


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_checksums_of_slices_add_up_to_that_of_the_whole(rows, columns, data):
    whole = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 41 + columns))
    a, b = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    parts = [(i, j, whole[i:m, j:n]) for i, m in ((0, a), (a, rows)) for j, n in ((0, b), (b, columns))]
    assert sum(checksum(part, i, j) for i, j, part in parts) == pytest.approx(checksum(whole), abs=1e-9)
    if 0 < a < rows:
        swapped = checksum(whole[a:]) + checksum(whole[:a], rows - a)
        assert swapped != pytest.approx(checksum(whole), abs=1e-9)


@pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY.name} was not built: no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_library_sums_every_entry_of_every_row_with_its_weight(dtype):
    """For full SIMD vectors, the remainder and slices, with enough rows for two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for columns in (1, 7, 8, 31, 32, 33, 64, 577):
            matrix = torch.randn(113, columns + 5, generator=torch.Generator().manual_seed(columns)).to(dtype)
            places_K = place_weights(columns, matrix.device, 3, column=True)
            for slice_NK in (matrix[:, :columns], matrix[7:, 5:]):
                want_N = (slice_NK.double() * places_K).sum(1)
                torch.testing.assert_close(row_sums(slice_NK, 3), want_N, rtol=1e-12, atol=1e-12)
    finally:
        torch.set_num_threads(threads)
    matrix[4, -1] = torch.nan
    assert row_sums(matrix).isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("name", ["model", "model [v1]", "a*[!b]?"])
def test_vllm_finds_weights_in_a_folder_of_any_name(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    with without_brackets(name) as path:
        assert [Path(found).name for found in glob(f"{path}/*.safetensors")] == ["model.safetensors"]
    assert Path(path).exists() == (name == "model")
    assert (tmp_path / name / "model.safetensors").exists()


@pytest.mark.parametrize("version", ["0.27.0", "0.32.0", "0.30.1.dev3+g1234", "0.32.5+cu130", installed_version()])
def test_versions_in_the_range(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.26.1", "0.33.0", "1.0", "0.3.2", "dev"])
def test_a_version_outside_the_range_is_refused_with_the_range(version):
    with pytest.raises(EngineError, match=rf"^vllm {version} is installed, want 0\.27 to 0\.32$"):
        check_version(version)


QWEN = sizes_of(SimpleNamespace(num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_model_that_divides(ranks):
    check_divides(QWEN, ranks)


@pytest.mark.parametrize(
    ("ranks", "line"),
    [
        (8, "engine.tensor_parallel: found 8, wanted a divisor of the model's num_attention_heads, 12"),
        (3, "engine.tensor_parallel: found 3, wanted a divisor of the model's num_key_value_heads, 2"),
        (6, "engine.tensor_parallel: found 6, wanted a divisor of the model's intermediate_size, 8960"),
    ],
)
def test_a_model_that_does_not_divide_is_refused(ranks, line):
    with pytest.raises(ConfigError, match=line):
        check_divides(QWEN, ranks)


@pytest.mark.parametrize(("devices", "slices"), [(8, 4), (3, 2), (1, 1)])
def test_a_model_is_sliced_over_as_many_devices_as_its_sizes_allow(devices, slices):
    assert most_slices(QWEN, devices) == slices


def test_a_library_that_can_not_be_loaded_is_named(tmp_path, monkeypatch):
    """A library of another platform means a broken installation; a missing library is allowed."""
    (tmp_path / "sums.so").write_text("made for another machine")
    monkeypatch.setattr(checksums, "LIBRARY", tmp_path / "sums.so")
    with pytest.raises(EngineError, match=r"sums\.so can't be loaded: .*; wanted one built on this machine"):
        checksums._native_row_sums.__wrapped__()


def test_a_weight_of_three_dimensions_has_no_checksum():
    with pytest.raises(ValueError, match="too many values"):
        row_sums(torch.ones(2, 3, 3))
