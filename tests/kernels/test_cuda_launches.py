"""The host side of the CUDA kernels, against stubs of the CUDA runtime and torch.cuda that record calls."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import capo_kernels as ck
from capo_kernels import api
from capo_kernels.fused.native import CudaRows

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).parent / "cuda_stub"


def test_a_kernel_is_prepared_once_for_each_device_and_size(tmp_path) -> None:
    """Also after a failure. Every launch names its device, because the library's runtime ignores torch's choice."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    program = tmp_path / "launches"
    command = ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{STUB}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, "-x", "c++", str(STUB / "launches.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [
        "2 device0 shared232448 occupancy ",
        "0 device0 shared232448 occupancy device0 launch264 ",
        "0 device0 launch40 ",
        "0 device0 shared232448 occupancy device0 launch264 ",
        "0 device1 shared232448 occupancy device1 launch264 ",
        "0 device0 shared232448 occupancy device0 launch264 ",
        "0 device0 launch264 ",  # a narrow row after a wide one
        "0 device0 launch264 ",
        "0 device1 launch12 ",
        "",
    ]


def test_a_call_runs_on_its_tensors_device_and_stream(monkeypatch) -> None:
    """Whatever the current device is; the call does not change it."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    launches = []
    device = torch.device("cuda", 3)
    for run in (CudaRows._run_rows, CudaRows._run_tokens):
        run(None, lambda *arguments: launches.append(arguments), device, "matrix")
    assert entered == [device, device]
    assert launches == [("matrix", 3, 7)] * 2


def test_a_captured_graph_does_not_freeze_coefficients(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    on_gpu = SimpleNamespace(is_cuda=True)
    with pytest.raises(RuntimeError, match=r"^spec: got coefficients on the host inside the capture of a CUDA graph"):
        api._refuse_frozen_coefficients(on_gpu, ck.LossSpec())
    api._refuse_frozen_coefficients(on_gpu, ck.LossSpec().on("cpu"))
