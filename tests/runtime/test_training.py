"""The ranks of a training run: what ends it with one line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from capo_fast.command import run_training
from capo_fast.errors import CapoError
from capo_fast.runtime.training import train_on_ranks


def test_a_full_gpu_is_one_line(capsys):
    def build(device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 GiB free.")

    assert run_training(lambda: train_on_ranks(1.0, build)) == 1
    assert capsys.readouterr().err == (
        "capo_fast: error: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.; "
        "capo plan names settings to lower\n"
    )


def test_a_run_in_a_thread_ends_before_its_models_are_read():
    def build(device):
        raise AssertionError("built")

    with ThreadPoolExecutor(1) as pool, pytest.raises(CapoError, match="a run was started in a thread"):
        pool.submit(train_on_ranks, 1.0, build).result()
